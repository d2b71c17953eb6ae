// From logits to the next token.
//
// The chain, in this order: repeat penalty, top-k, top-p, min-p, temperature, draw; each step sees what the one before
// left. Temperature 0 (or less) takes the largest logit after the repeat penalty.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "models/tokenizer.h"

namespace thermocline {

struct SamplerParams {
  double temperature = 0.8;
  int top_k = 40;             // 0: all
  double top_p = 0.95;        // 1: off
  double min_p = 0.05;        // 0: off
  double repeat_penalty = 1;  // 1: off
  uint32_t seed = 0;
};

inline constexpr int kRepeatWindow = 64;  // tokens that the repeat penalty looks back, prompt included

struct Candidate {
  TokenId id;
  double logit;        // after the repeat penalty, before temperature
  double probability;  // of being drawn
};

class Sampler {
 public:
  explicit Sampler(const SamplerParams& params);

  // Draws from `logits` (n_vocab). `recent` are the tokens so far, the newest last; at most kRepeatWindow count.
  // Throws Error when no logit is a number, as a damaged model gives.
  TokenId Sample(std::span<const float> logits, std::span<const TokenId> recent);

  // What Sample draws from: the survivors with their probabilities, most probable first, equals by id.
  const std::vector<Candidate>& Candidates(std::span<const float> logits, std::span<const TokenId> recent);

  uint32_t seed() const { return params_.seed; }

 private:
  std::span<const double> Penalize(std::span<const float> logits, std::span<const TokenId> recent);
  template <typename T>
  void TopK(std::span<const T> logits);
  void Softmax(double temperature);
  double Uniform();  // [0, 1)

  SamplerParams params_;
  std::mt19937_64 random_;
  std::vector<double> penalized_;
  std::vector<Candidate> candidates_;
};

}  // namespace thermocline
