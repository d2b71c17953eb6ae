// The mode `threshold`: its levels are chosen and judged here.
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

}  // namespace thermocline
