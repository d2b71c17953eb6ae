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

}  // namespace

void SparsityFlag::AddFlag(CommandLine& line) {
  line.AddText(
      "--sparsity", "MODE", &word_,
      "exact: do not read the neurons that ReLU silences, whose part is zero; dense: read all (auto: exact where "
      "the activation is ReLU, unless `profile` saw hardly any silent)");
}

void SparsityFlag::Check() const {
  const std::string word = word_.value_or("auto");
  if (word != "auto" && word != "exact" && word != "dense")
    throw UsageError(fmt::format("--sparsity: {} is none of auto, exact, dense", Quoted(word)));
}

FfnMode SparsityFlag::Choose(const GgufFile& file, const Model& model) const {
  const std::string word = word_.value_or("auto");
  if (word == "dense") return FfnMode::kDense;
  if (!FindSparseFfns(model).empty())
    return word == "auto" && HardlyAnySilent(file, model) ? FfnMode::kDense : FfnMode::kExact;
  if (word == "auto") return FfnMode::kDense;
  const Activation activation = model.config.arch.activation;
  if (activation != Activation::kRelu)
    throw Error(
        "--sparsity exact needs a model with the activation relu; this one's is {}, which silences no neuron exactly. "
        "Leave the flag out.",
        Name(activation));
  throw Error(
      "--sparsity exact is for FFNs with a gate, without a bias of up, and of widths that are multiples of 32; this "
      "model's are not. Leave the flag out.");
}

std::string DescribeNeurons(const NeuronCount& count) {
  if (count.neurons == 0) return {};
  const auto percent = [](int64_t part, int64_t whole) { return 100.0 * static_cast<double>(part) / whole; };
  return fmt::format("{:.1f} % of neurons active, {:.1f} % of their up and down weights read",
                     percent(count.active, count.neurons), percent(count.bytes_read, count.bytes));
}

}  // namespace thermocline
