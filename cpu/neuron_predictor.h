// What tells from the input of a layer's FFN, before its gate is read, which neurons are going to fire: two small
// matrices one behind the other, n_embd -> rank -> n_ff (arXiv:2312.12456 sec. 5.1).
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline {

inline constexpr int kPredictorRankStep = 32;  // ranks are multiples of it: whole blocks of Q8_0

// Neuron i is predicted to fire where (out (in x))[i] + bias[i] > level, or with relu, (out max(0, in x))[i] + bias[i].
struct NeuronPredictor {
  int64_t rank = 0;            // 0: the layer has none
  std::vector<uint8_t> in{};   // (rank, n_embd) Q8_0
  std::vector<uint8_t> out{};  // (n_ff, rank) Q8_0
  std::vector<float> bias{};   // (n_ff)
  float level = 0;
  bool relu = false;

  int64_t bytes() const { return static_cast<int64_t>(in.size() + out.size() + bias.size() * sizeof(float)); }
};

struct Weight;
// That of the rows of a gate, which may be some of a layer's, in an order of their own.
NeuronPredictor PredictorOf(const NeuronPredictor& layer, const Weight& gate);

}  // namespace thermocline
