// The part of a .heat file that tells beforehand which neurons fire.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/neuron_predictor.h"
#include "models/gguf.h"
#include "models/model.h"

namespace thermocline {

class HeatWriter;

// What is by layer has all layers of the model, or is empty.
struct HeatPredictors {
  uint64_t training_hash = 0;           // of the text and the request they were trained for
  std::vector<NeuronPredictor> layers;  // rank 0: not trained yet
  std::vector<float> firing_levels;     // a neuron fires where |act(gate)| is above; 0 with ReLU
  // On text that did not train them, of all that fires and of all neurons; empty: not judged yet.
  std::vector<float> recall, computed;
  std::vector<float> missed;  // there: |all - chosen|^2 / |all|^2 of what the FFN adds
  float rise = 0;             // there: of perplexity over dense, 0.01 is 1 %

  bool complete() const { return !missed.empty(); }
  int64_t bytes() const;
};

void WritePredictors(const HeatPredictors& predictors, int64_t n_ff, HeatWriter& writer);
// Throws Error for what does not fit the model or is no number.
HeatPredictors ReadPredictors(const GgufFile& file, const ModelConfig& config);

}  // namespace thermocline
