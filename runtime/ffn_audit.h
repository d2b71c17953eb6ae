// Levels that decide which neurons are left out, watched while answers are made.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "predictor/threshold.h"
#include "runtime/engine.h"

namespace thermocline {

// By layer.
struct AuditedLevels {
  std::vector<float> levels;  // as the engine has them
  std::vector<float> missed;  // when they were judged: |all - chosen|^2 / |all|^2 of what the FFN adds
  // The level that may do for a layer whose FFN misses excess (above 1) times what it may; the same one: none is left.
  std::function<float(size_t layer, float level, double excess)> lower;
  std::function<void(std::span<const float> levels)> apply;  // between steps
};

// Of SetNeuronLevels and SetPredictorLevels of an engine, which must outlive what is returned.
AuditedLevels AuditedThresholds(Engine& engine, const ThresholdPoint& point);
AuditedLevels AuditedPredictors(Engine& engine, const HeatPredictors& predictors);

// Computes a share of generated rows with all neurons too. Where over some rows a layer's FFN surely misses more than
// kAuditSlack times what it did when the levels were judged, its level is lowered until that holds again.
class FfnAuditor {
 public:
  static constexpr double kAuditSlack = 2;
  static constexpr int kWindow = 16;  // audited rows between decisions

  // Watches `engine` until destroyed; `share` of rows, above 0 and up to 1.
  FfnAuditor(Engine& engine, AuditedLevels levels, double share);
  ~FfnAuditor();
  FfnAuditor(const FfnAuditor&) = delete;

  // "audit: 12 tokens, FFNs miss 1.2 % (1.1 % when calibrated), levels lowered in 3 layers"; empty before the first.
  std::string Describe() const;
  const std::vector<float>& levels() const { return audited_.levels; }
  int n_lowered() const;  // layers

 private:
  void AfterStep();

  Engine& engine_;
  AuditedLevels audited_;
  std::vector<float> first_levels_;
  FfnAudit window_;
  std::vector<double> window_squares_;  // by layer, summed over its tokens
  double missed_ = 0;                   // mean over layers, summed over all tokens
  int64_t tokens_ = 0;
};

}  // namespace thermocline
