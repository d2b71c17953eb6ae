// The mode `threshold`: its levels are chosen and judged here, and watched while answers are made.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/tokenizer.h"
#include "predictor/threshold.h"
#include "runtime/engine.h"

namespace thermocline {

struct ThresholdRequest {
  std::vector<double> means;       // shares of neurons to be left out, ascending
  std::optional<double> max_rise;  // of perplexity: also the largest share that stays within it
  int n_ctx = 512;                 // of the pieces that the texts are read in
};

// Adds to `heat`, which has counted a text, the sensitivities and points that it lacks; `on_save` sees it whenever
// something was added. `choose` decides about levels, `judge` says what they cost; both fill a piece of n_ctx tokens.
// `dense` holds the model with dense FFNs, `make_sparse` makes the engine that leaves neurons out, when `dense` is
// gone. All rows count as generated ones. Throws Error where the model's FFNs cannot be sparse.
void CalibrateThresholds(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> choose,
                         std::span<const TokenId> judge, const ThresholdRequest& request, std::unique_ptr<Engine> dense,
                         const std::function<std::unique_ptr<Engine>()>& make_sparse,
                         const std::function<void(const Heat&)>& on_save, Heat& heat);

// Computes a share of generated rows with all neurons too. Where over some rows a layer's FFN misses more than
// kAuditSlack times what it did when the levels were judged, its level is lowered until that holds again.
class ThresholdAudit {
 public:
  static constexpr double kAuditSlack = 2;
  static constexpr int kWindow = 16;  // audited rows between decisions

  // Watches `engine`, whose levels are point.levels, until destroyed; `share` of rows, above 0 and up to 1.
  ThresholdAudit(Engine& engine, ThresholdPoint point, double share);
  ~ThresholdAudit();
  ThresholdAudit(const ThresholdAudit&) = delete;

  // "audit: 12 tokens, FFNs miss 1.2 % (1.1 % when calibrated), levels lowered in 3 layers"; empty before the first.
  std::string Describe() const;
  const std::vector<float>& levels() const { return point_.levels; }
  int n_lowered() const;  // layers

 private:
  void AfterStep();

  Engine& engine_;
  ThresholdPoint point_;  // its levels as they are now
  std::vector<float> first_levels_;
  FfnAudit window_;
  double missed_ = 0;  // mean over layers, summed over all tokens
  int64_t tokens_ = 0;
};

}  // namespace thermocline
