// Predictors that know nothing, and name about half of all neurons.
#pragma once

#include <random>
#include <vector>

#include "cpu/neuron_predictor.h"
#include "models/quantize.h"

namespace thermocline {

inline NeuronPredictor RandomPredictor(int64_t n_embd, int64_t n_ff, int64_t rank, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  const auto blocks = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = normal(rng);
    std::vector<uint8_t> out(values.size() / 32 * 34);
    Quantize(DType::kQ8_0, values.data(), nullptr, n, out.data());
    return out;
  };
  return {rank, blocks(rank * n_embd), blocks(n_ff * rank), std::vector<float>(static_cast<size_t>(n_ff)), 0};
}

}  // namespace thermocline
