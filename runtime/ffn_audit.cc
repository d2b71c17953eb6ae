#include "runtime/ffn_audit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace thermocline {
namespace {

// Of a window's mean: few tokens make most of what predictors miss, and one of them proves nothing.
constexpr double kSureErrors = 2;
constexpr double kRarestAudit = 1e9;  // tokens from an audited one to the next, at most

}  // namespace

AuditedLevels AuditedThresholds(Engine& engine, const ThresholdPoint& point) {
  const auto lower = [](size_t, float level, double excess) {
    return level * static_cast<float>(std::cbrt(1 / excess));  // squares below a level grow about as its third power
  };
  return {point.levels, point.missed, lower, [&engine](std::span<const float> now) { engine.SetNeuronLevels(now); }};
}

AuditedLevels AuditedPredictors(Engine& engine, const HeatPredictors& predictors) {
  std::vector<float> first;
  for (const NeuronPredictor& layer : predictors.layers) first.push_back(layer.level);
  // Scores of a damaged predictor may mean anything: steps grow until, if need be, every neuron is predicted.
  const auto lower = [first](size_t layer, float level, double) {
    return first[layer] - 2 * (first[layer] - level) - 1;
  };
  return {first, predictors.missed, lower, [&engine](std::span<const float> now) { engine.SetPredictorLevels(now); }};
}

FfnAuditor::FfnAuditor(Engine& engine, AuditedLevels levels, double share)
    : engine_(engine), audited_(std::move(levels)), first_levels_(audited_.levels) {
  window_.missed.resize(first_levels_.size());
  window_squares_.resize(first_levels_.size());
  engine_.SetAudit(std::llround(std::min(1 / share, kRarestAudit)));
  engine_.SetStepHook([this] { AfterStep(); });
}

FfnAuditor::~FfnAuditor() {
  engine_.SetStepHook({});
  engine_.SetAudit(0);
}

void FfnAuditor::AfterStep() {
  const FfnAudit audit = engine_.TakeAudit();
  if (audit.tokens == 0) return;
  tokens_ += audit.tokens;
  window_.tokens += audit.tokens;
  missed_ += std::accumulate(audit.missed.begin(), audit.missed.end(), 0.0) / static_cast<double>(audit.missed.size());
  for (size_t i = 0; i < audit.missed.size(); ++i) {
    window_.missed[i] += audit.missed[i];
    window_squares_[i] += audit.missed[i] * audit.missed[i] / static_cast<double>(audit.tokens);
  }
  if (window_.tokens < kWindow) return;
  bool lowered = false;
  const auto n = static_cast<double>(window_.tokens);
  for (size_t i = 0; i < window_.missed.size(); ++i) {
    const double missed = window_.missed[i] / n, limit = kAuditSlack * audited_.missed[i];
    const double error = std::sqrt(std::max(0.0, window_squares_[i] / n - missed * missed) / n);
    if (missed - kSureErrors * error <= limit) continue;
    const float level = audited_.lower(i, audited_.levels[i], missed / limit);
    lowered |= level != audited_.levels[i];
    audited_.levels[i] = level;
  }
  window_ = {0, std::vector<double>(window_.missed.size())};
  window_squares_.assign(window_squares_.size(), 0);
  if (lowered) audited_.apply(audited_.levels);
}

int FfnAuditor::n_lowered() const {
  int n = 0;
  for (size_t i = 0; i < first_levels_.size(); ++i) n += audited_.levels[i] < first_levels_[i];
  return n;
}

std::string FfnAuditor::Describe() const {
  if (tokens_ == 0) return {};
  const double expected = std::accumulate(audited_.missed.begin(), audited_.missed.end(), 0.0) /
                          static_cast<double>(audited_.missed.size());
  std::string text = fmt::format("audit: {} tokens, FFNs miss {:.1f} % ({:.1f} % when calibrated)", tokens_,
                                 100 * missed_ / static_cast<double>(tokens_), 100 * expected);
  if (const int n = n_lowered(); n > 0) text += fmt::format(", levels lowered in {} layers", n);
  return text;
}

}  // namespace thermocline
