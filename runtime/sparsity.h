// Which neurons a command reads: --sparsity, and what it says afterwards.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cpu/bundle_ffn.h"
#include "models/model.h"
#include "predictor/heat.h"
#include "runtime/cli.h"
#include "runtime/ffn_audit.h"

namespace thermocline {

class SparsityFlag {
 public:
  void AddFlag(CommandLine& line);  // with --form and --audit
  void Check();                     // throws UsageError for a word it does not know
  // What the word means for the model, of which a .heat file beside it tells whether skipping pays, the levels of
  // `threshold` and the predictors, which stay in here. Throws Error where the mode cannot be had.
  LoadOptions Choose(const GgufFile& file, const Model& model);
  // Sets the levels of an engine of the mode that was chosen, and watches them where --audit asks for that: until what
  // is returned, which may be null, is destroyed.
  std::unique_ptr<FfnAuditor> Apply(Engine& engine) const;
  // Whether prompt rows, which leave out nothing, say nothing about the mode.
  bool changes_generated_rows() const { return point_ || predictors_; }

 private:
  std::string word_ = "auto";                        // without what follows a colon
  std::optional<std::string> given_, form_, audit_;  // as they stand on the command line
  std::optional<double> mean_;                       // of threshold:0.4
  double audit_share_ = 0;
  std::optional<ThresholdPoint> point_;       // of `threshold`
  std::optional<HeatPredictors> predictors_;  // of `predicted`
};

// "10.3 % of neurons active, 25.1 % of their up and down weights read", or with predictors "19.8 % of neurons
// predicted, 9.9 % active, 24.0 % of the bytes of FFNs read, predictors among them", and what the audit says; empty
// where all is read.
std::string DescribeNeurons(const NeuronCount& count, const FfnAuditor* audit);

}  // namespace thermocline
