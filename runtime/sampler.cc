#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

bool Before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

}  // namespace

Sampler::Sampler(const SamplerParams& params) : params_(params), random_(params.seed) {}

// The logits with the recent tokens made less likely: divided where positive, multiplied where negative
// (arXiv:1909.05858 sec. 4.1, with the sign handled), once per token however often it occurred.
std::span<const double> Sampler::Penalize(std::span<const float> logits, std::span<const TokenId> recent) {
  penalized_.assign(logits.begin(), logits.end());
  recent = recent.last(std::min<size_t>(recent.size(), kRepeatWindow));
  for (const TokenId id : recent) {
    CHECK(id >= 0 && static_cast<size_t>(id) < logits.size());
    const double logit = logits[id];
    penalized_[id] = logit > 0 ? logit / params_.repeat_penalty : logit * params_.repeat_penalty;
  }
  return penalized_;
}

// The top_k largest, sorted. One pass with a heap whose front is the smallest kept: nearly every token of a large
// vocabulary costs one comparison.
template <typename T>
void Sampler::TopK(std::span<const T> logits) {
  size_t k = params_.top_k > 0 ? static_cast<size_t>(params_.top_k) : logits.size();
  if (params_.temperature <= 0) k = 1;
  const bool all = k >= logits.size();
  candidates_.clear();
  T bar = -std::numeric_limits<T>::infinity();
  for (size_t i = 0; i < logits.size(); i++) {
    if (!(logits[i] > bar)) continue;  // also drops what is not a number; among equals the earlier id stays
    if (candidates_.size() == k) {
      std::pop_heap(candidates_.begin(), candidates_.end(), Before);
      candidates_.pop_back();
    }
    candidates_.push_back({static_cast<TokenId>(i), logits[i], 0});
    if (all) continue;
    std::push_heap(candidates_.begin(), candidates_.end(), Before);
    if (candidates_.size() == k) bar = static_cast<T>(candidates_.front().logit);
  }
  std::sort(candidates_.begin(), candidates_.end(), Before);
  if (candidates_.empty() || std::isinf(candidates_.front().logit)) {
    throw Error("the model's output is not a number: the model file is damaged, or its numbers overflow");
  }
}

void Sampler::Softmax(double temperature) {
  const double max = candidates_.front().logit;
  double sum = 0;
  for (Candidate& candidate : candidates_) {
    candidate.probability = std::exp((candidate.logit - max) / temperature);
    sum += candidate.probability;
  }
  for (Candidate& candidate : candidates_) candidate.probability /= sum;
}

const std::vector<Candidate>& Sampler::Candidates(std::span<const float> logits, std::span<const TokenId> recent) {
  if (params_.repeat_penalty == 1) {
    TopK(logits);
  } else {
    TopK(Penalize(logits, recent));
  }
  if (params_.temperature <= 0) {
    candidates_.resize(1);
    candidates_[0].probability = 1;
    return candidates_;
  }
  if (params_.top_p < 1) {
    Softmax(1);
    double sum = 0;
    size_t kept = 0;
    while (kept < candidates_.size() && (kept == 0 || sum < params_.top_p)) sum += candidates_[kept++].probability;
    candidates_.resize(kept);
  }
  if (params_.min_p > 0) {
    const double bar = candidates_.front().logit + std::log(static_cast<double>(params_.min_p));
    size_t kept = 1;
    while (kept < candidates_.size() && candidates_[kept].logit >= bar) kept++;
    candidates_.resize(kept);
  }
  Softmax(params_.temperature);
  return candidates_;
}

TokenId Sampler::Sample(std::span<const float> logits, std::span<const TokenId> recent) {
  const auto& candidates = Candidates(logits, recent);
  if (params_.temperature <= 0) return candidates.front().id;
  double left = Uniform();
  for (const Candidate& candidate : candidates) {
    left -= candidate.probability;
    if (left < 0) return candidate.id;
  }
  return candidates.back().id;
}

// The standard leaves to libraries how a distribution uses its bits; 53 of them by hand are the same everywhere.
double Sampler::Uniform() { return static_cast<double>(random_() >> 11) * 0x1.0p-53; }

}  // namespace thermocline
