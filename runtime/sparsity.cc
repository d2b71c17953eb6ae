#include "runtime/sparsity.h"

#include <fmt/format.h>

#include "models/error.h"
#include "models/quoted.h"
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
    double silent = 0;
    for (size_t i = 0; i < heat.layers.size(); ++i) silent += 1 - heat.ActiveShare(static_cast<int>(i), 0);
    return silent < kWorthSkipping * static_cast<double>(heat.layers.size());
  } catch (const Error& damaged) {
    Note("warning: {}", TerminalSafe(damaged.what()));
    return false;
  }
}

// Of the model's .heat file: for that mean, or the one that was chosen by --max-rise, or the largest.
ThresholdPoint ChoosePoint(const GgufFile& file, const Model& model, std::optional<double> mean) {
  const std::filesystem::path path = HeatPath(file.path());
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw Error(
        "{}: missing; --sparsity threshold needs what `thermocline profile MODEL --text FILE --max-rise 1%` "
        "writes there",
        path.string());
  const Heat heat = ReadHeat(path, file, model.config);
  if (mean || heat.thresholds.empty()) return ThresholdFor(heat, mean.value_or(0));
  return heat.chosen_threshold >= 0 ? heat.thresholds[heat.chosen_threshold] : heat.thresholds.back();
}

}  // namespace

void SparsityFlag::AddFlag(CommandLine& line) {
  line.AddText(
      "--sparsity", "MODE", &given_,
      "exact: do not read the neurons that ReLU silences, whose part is zero; threshold[:0.4]: nor those whose part is "
      "small, as `profile` calibrated it, for generated tokens; dense: read all (auto: exact where the activation is "
      "ReLU, unless `profile` saw hardly any silent)");
  line.AddText("--audit", "PERCENT", &audit_,
               "With threshold: of generated tokens, those that are also computed with all neurons; where too much is "
               "missed, less is left out from then on (0)");
}

void SparsityFlag::Check() {
  if (audit_) audit_share_ = ParsePercent("--audit", *audit_);
  const std::string given = given_.value_or("auto");
  const size_t colon = given.find(':');
  word_ = given.substr(0, colon);
  const bool known = word_ == "auto" || word_ == "exact" || word_ == "dense" || word_ == "threshold";
  if (!known || (colon != std::string::npos && word_ != "threshold"))
    throw UsageError(
        fmt::format("--sparsity: {} is none of auto, exact, dense, threshold, threshold:0.4", Quoted(given)));
  if (colon != std::string::npos) mean_ = ParseShare("--sparsity threshold", given.substr(colon + 1));
  if (audit_ && word_ != "threshold") throw UsageError("--audit belongs to --sparsity threshold");
}

FfnMode SparsityFlag::Choose(const GgufFile& file, const Model& model) {
  if (word_ == "dense") return FfnMode::kDense;
  const FfnMode mode = word_ == "threshold" ? FfnMode::kThreshold : FfnMode::kExact;
  if (!FindSparseFfns(model, mode).empty()) {
    if (word_ == "auto" && HardlyAnySilent(file, model)) return FfnMode::kDense;
    if (mode == FfnMode::kThreshold) point_ = ChoosePoint(file, model, mean_);
    return mode;
  }
  if (word_ == "auto") return FfnMode::kDense;
  const Activation activation = model.config.arch.activation;
  if (mode == FfnMode::kExact && activation != Activation::kRelu)
    throw Error(
        "--sparsity exact needs a model with the activation relu; this one's is {}, which silences no neuron exactly. "
        "Leave the flag out.",
        Name(activation));
  throw Error(
      "--sparsity {} is for FFNs with a gate, without a bias of up, and of widths that are multiples of 32; this "
      "model's are not. Leave the flag out.",
      word_);
}

std::unique_ptr<ThresholdAudit> SparsityFlag::Apply(Engine& engine) const {
  if (!point_) return nullptr;
  engine.SetNeuronLevels(point_->levels);
  Note("leaving out about {:.0f} % of neurons; perplexity {:+.1f} % when calibrated", 100 * point_->sparsity,
       100 * point_->rise);
  return audit_share_ > 0 ? std::make_unique<ThresholdAudit>(engine, *point_, audit_share_) : nullptr;
}

std::string DescribeNeurons(const NeuronCount& count, const ThresholdAudit* audit) {
  if (count.neurons == 0) return {};
  const auto percent = [](int64_t part, int64_t whole) { return 100.0 * static_cast<double>(part) / whole; };
  std::string text = fmt::format("{:.1f} % of neurons active, {:.1f} % of their up and down weights read",
                                 percent(count.active, count.neurons), percent(count.bytes_read, count.bytes));
  const std::string audited = audit ? audit->Describe() : "";
  return audited.empty() ? text : text + " | " + audited;
}

}  // namespace thermocline
