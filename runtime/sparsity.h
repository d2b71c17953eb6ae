// Which neurons a command reads: --sparsity, and what it says afterwards.
#pragma once

#include <optional>
#include <string>

#include "cpu/bundle_ffn.h"
#include "models/model.h"
#include "runtime/cli.h"

namespace thermocline {

class SparsityFlag {
 public:
  void AddFlag(CommandLine& line);
  void Check() const;  // throws UsageError for a word it does not know
  // What the word means for the model, of which a .heat file beside it tells whether skipping pays. Throws Error where
  // `exact` cannot be had.
  FfnMode Choose(const GgufFile& file, const Model& model) const;

 private:
  std::optional<std::string> word_;
};

// "10.3 % of neurons active, 25.1 % of their up and down weights read"; empty where all is read.
std::string DescribeNeurons(const NeuronCount& count);

}  // namespace thermocline
