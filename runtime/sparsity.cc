#include "runtime/sparsity.h"

#include <fmt/format.h>

#include "models/error.h"
#include "models/quoted.h"

namespace thermocline {

void SparsityFlag::AddFlag(CommandLine& line) {
  line.AddText(
      "--sparsity", "MODE", &word_,
      "exact: do not read the neurons that ReLU silences, whose part is zero; dense: read all (auto: exact where "
      "the activation is ReLU)");
}

void SparsityFlag::Check() const {
  const std::string word = word_.value_or("auto");
  if (word != "auto" && word != "exact" && word != "dense")
    throw UsageError(fmt::format("--sparsity: {} is none of auto, exact, dense", Quoted(word)));
}

FfnMode SparsityFlag::Choose(const Model& model) const {
  const std::string word = word_.value_or("auto");
  if (word == "dense") return FfnMode::kDense;
  if (!FindSparseFfns(model).empty()) return FfnMode::kExact;
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
