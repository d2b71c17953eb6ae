#include "runtime/sparsity.h"

#include <fmt/format.h>

#include "models/error.h"
#include "models/quoted.h"
#include "predictor/file_predictors.h"
#include "predictor/heat.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

// Of neurons, the share that must be silent for skipping to pay: decode is 0.92 times as fast as dense with none and
// 1.13 times with a half, and prompts 0.9 times (HACKING.md "Silent neurons").
constexpr double kWorthSkipping = 0.25;

// What the model's .heat file says; without one, models gated by ReLU are taken for sparse.
bool HardlyAnySilent(const GgufFile& file, const Model& model) {
  const std::filesystem::path path = HeatPath(file.path());
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return false;
  try {
    const Heat heat = ReadHeat(path, file, model.config);
    if (!heat.profiled()) return false;
    double silent = 0;
    for (size_t i = 0; i < heat.layers.size(); ++i) silent += 1 - heat.ActiveShare(static_cast<int>(i), 0);
    return silent < kWorthSkipping * static_cast<double>(heat.layers.size());
  } catch (const Error& damaged) {
    Note("warning: {}", TerminalSafe(damaged.what()));
    return false;
  }
}

// How the weights of FFNs may stand for a mode, its default first (cpu/bundle_ffn.h).
struct FormsOfMode {
  std::string_view mode, forms;
};
constexpr FormsOfMode kForms[] = {{"dense", "f1, f2"}, {"exact", "f2"}, {"threshold", "f2"}, {"predicted", "f3"}};

void CheckForm(const std::string& form, const std::string& mode) {
  if (form != "f1" && form != "f2" && form != "f3")
    throw UsageError(fmt::format("--form: {} is none of f1, f2, f3", Quoted(form)));
  for (const FormsOfMode& row : kForms) {
    if (row.mode != mode) continue;
    if (row.forms.find(form) != std::string_view::npos) return;
    throw UsageError(fmt::format("--form {}: --sparsity {} is computed from {}", form, mode, row.forms));
  }
  throw UsageError("--form goes with --sparsity dense, exact, threshold or predicted");
}

// The model's .heat file, which the mode needs and `profile` with those flags writes.
Heat NeedHeat(const GgufFile& file, const Model& model, const std::string& mode, const char* flags) {
  const std::filesystem::path path = HeatPath(file.path());
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw Error("{}: missing; --sparsity {} needs what `thermocline profile MODEL --text FILE {}` writes there",
                path.string(), mode, flags);
  return ReadHeat(path, file, model.config);
}

// Of the model's .heat file: for that mean, or the one that was chosen by --max-rise, or the largest.
ThresholdPoint ChoosePoint(const GgufFile& file, const Model& model, std::optional<double> mean) {
  const Heat heat = NeedHeat(file, model, "threshold", "--max-rise 1%");
  if (mean || heat.thresholds.empty()) return ThresholdFor(heat, mean.value_or(0));
  return heat.chosen_threshold >= 0 ? heat.thresholds[heat.chosen_threshold] : heat.thresholds.back();
}

// Those that were trained here come before those that PowerInfer put into the file.
HeatPredictors ChoosePredictors(const GgufFile& file, const Model& model) {
  std::error_code error;
  if (!model.predictors.empty() && !std::filesystem::exists(HeatPath(file.path()), error))
    return ReadFilePredictors(file, model);
  Heat heat = NeedHeat(file, model, "predicted", "--train-predictors");
  if (!heat.predictors.complete() && !model.predictors.empty()) return ReadFilePredictors(file, model);
  if (!heat.predictors.complete())
    throw Error("{}: no predictors in it: thermocline profile MODEL --text FILE --train-predictors",
                HeatPath(file.path()).string());
  return std::move(heat.predictors);
}

}  // namespace

void SparsityFlag::AddFlag(CommandLine& line) {
  line.AddText(
      "--sparsity", "MODE", &given_,
      "exact: do not read the neurons that ReLU silences, whose part is zero; threshold[:0.4]: nor those whose part is "
      "small, as `profile` calibrated it, for generated tokens; predicted: for these, only the neurons that predictors "
      "name, which `profile --train-predictors` made, and some that fire are missed; dense: read all (auto: exact "
      "where the activation is ReLU, unless `profile` saw hardly any silent)");
  line.AddText("--form", "FORM", &form_,
               "How FFNs stand in memory: f1, panels, for dense; f2, up and down of a neuron side by side, for dense, "
               "exact and threshold; f3, the gate's rows apart as well, for predicted (the mode's)");
  line.AddText("--audit", "PERCENT", &audit_,
               "With threshold and predicted: of generated tokens, those that are also computed with all neurons; "
               "where too much is "
               "missed, less is left out from then on (0)");
}

void SparsityFlag::Check() {
  if (audit_) audit_share_ = ParsePercent("--audit", *audit_);
  const std::string given = given_.value_or("auto");
  const size_t colon = given.find(':');
  word_ = given.substr(0, colon);
  const bool left_out = word_ == "threshold" || word_ == "predicted";
  const bool known = word_ == "auto" || word_ == "exact" || word_ == "dense" || left_out;
  if (!known || (colon != std::string::npos && word_ != "threshold"))
    throw UsageError(fmt::format("--sparsity: {} is none of auto, exact, dense, predicted, threshold, threshold:0.4",
                                 Quoted(given)));
  if (colon != std::string::npos) mean_ = ParseShare("--sparsity threshold", given.substr(colon + 1));
  if (form_) CheckForm(*form_, word_);
  if (audit_ && !left_out) throw UsageError("--audit belongs to --sparsity threshold and predicted");
}

LoadOptions SparsityFlag::Choose(const GgufFile& file, const Model& model) {
  LoadOptions load;
  const bool bundle_dense = word_ == "dense" && form_ == "f2";
  if (word_ == "dense" && !bundle_dense) return load;
  const FfnMode mode = bundle_dense           ? FfnMode::kBundleDense
                       : word_ == "threshold" ? FfnMode::kThreshold
                       : word_ == "predicted" ? FfnMode::kPredicted
                                              : FfnMode::kExact;
  if (!FindSparseFfns(model, mode).empty()) {
    if (word_ == "auto" && HardlyAnySilent(file, model)) return load;
    if (mode == FfnMode::kThreshold) point_ = ChoosePoint(file, model, mean_);
    if (mode == FfnMode::kPredicted) predictors_ = ChoosePredictors(file, model);
    if (audit_ && predictors_ && !predictors_->complete())
      throw Error(
          "{}: --audit compares with what predictors missed when they were judged, and those of this file were not. "
          "`thermocline profile MODEL --text FILE --train-predictors` makes some that are.",
          file.path());
    load.ffn = mode;
    if (predictors_) load.predictors = &predictors_->layers;
    return load;
  }
  if (word_ == "auto") return load;
  const Activation activation = model.config.arch.activation;
  if (mode == FfnMode::kExact && activation != Activation::kRelu)
    throw Error(
        "--sparsity exact needs a model with the activation relu; this one's is {}, which silences no neuron exactly. "
        "Leave the flag out.",
        Name(activation));
  throw Error(
      "{} is for FFNs with a gate, without a bias of up, and of widths that are multiples of 32; this model's are not. "
      "Leave the flag out.",
      bundle_dense ? "--form f2" : "--sparsity " + word_);
}

std::unique_ptr<FfnAuditor> SparsityFlag::Apply(Engine& engine) const {
  if (!point_ && !predictors_) return nullptr;
  AuditedLevels levels;
  if (point_) {
    engine.SetNeuronLevels(point_->levels);
    Note("leaving out about {:.0f} % of neurons; perplexity {:+.1f} % when calibrated", 100 * point_->sparsity,
         100 * point_->rise);
    levels = AuditedThresholds(engine, *point_);
  } else {
    engine.SetNeuronLevels(predictors_->firing_levels);
    if (predictors_->complete())
      Note("predicting which neurons fire; perplexity {:+.1f} % when trained", 100 * predictors_->rise);
    else
      Note("predicting which neurons fire, as the file's own predictors tell");
    levels = AuditedPredictors(engine, *predictors_);
  }
  return audit_share_ > 0 ? std::make_unique<FfnAuditor>(engine, std::move(levels), audit_share_) : nullptr;
}

std::string DescribeNeurons(const NeuronCount& count, const FfnAuditor* audit) {
  if (count.neurons == 0) return {};
  const auto percent = [](int64_t part, int64_t whole) { return 100.0 * static_cast<double>(part) / whole; };
  std::string text = fmt::format("{:.1f} % of neurons active, {:.1f} % of their up and down weights read",
                                 percent(count.active, count.neurons), percent(count.bytes_read, count.bytes));
  if (count.predictor_bytes > 0)
    text = fmt::format(
        "{:.1f} % of neurons predicted, {:.1f} % active, {:.1f} % of the bytes of FFNs read, predictors among them",
        percent(count.predicted, count.neurons), percent(count.active, count.neurons),
        percent(count.bytes_read + count.predictor_bytes, count.bytes));
  const std::string audited = audit ? audit->Describe() : "";
  return audited.empty() ? text : text + " | " + audited;
}

}  // namespace thermocline
