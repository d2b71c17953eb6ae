#include "cpu/neuron_predictor.h"

#include "models/check.h"
#include "models/model.h"

namespace thermocline {

NeuronPredictor PredictorOf(const NeuronPredictor& layer, const Weight& gate) {
  CHECK(gate.first_row + gate.n <= std::ssize(layer.bias));
  NeuronPredictor part = layer;
  part.out.clear();
  part.bias.clear();
  const int64_t row_bytes = std::ssize(layer.out) / std::ssize(layer.bias);
  for (int64_t i = gate.first_row; i < gate.first_row + gate.n; ++i) {
    const int64_t neuron = gate.rows ? (*gate.rows)[i] : i;
    const auto row = layer.out.begin() + neuron * row_bytes;
    part.out.insert(part.out.end(), row, row + row_bytes);
    part.bias.push_back(layer.bias[static_cast<size_t>(neuron)]);
  }
  return part;
}

}  // namespace thermocline
