// What the products of a model read while it runs over a text: what decides which rounding errors matter.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "cpu/feedback.h"
#include "models/tokenizer.h"
#include "runtime/engine.h"

namespace thermocline {

// Rows of one step, whose inputs are kept until they are summed up; rows of a second moment that one member sums up at
// a time.
inline constexpr int kCalibrationRows = 128;
inline constexpr int64_t kGramRows = 48;

// For FactorFeedback, of second moments of k columns from so many tokens.
float Damping(int64_t k, int64_t n_tokens);

// A row much larger than the others, as the first tokens of a text often are, would hide them: their layer norm makes
// all that follows small again. Larger ones of the rows (n_rows, k) than their geometric mean become that large, and
// what each was multiplied by is returned. Throws Error where a row is no number.
std::vector<float> EvenOut(float* rows, int64_t k, int n_rows);

// By the weight id of every matrix that multiplies; those that read the same share one.
class Calibration {
 public:
  // Runs `tokens` through `engine`, which holds `model`, in chunks of n_ctx, and factors what it saw. Where memory does
  // not hold the second moments of all inputs, or they are not wanted, only their diagonals are kept: no feedback, but
  // importance. `only`: of this matrix alone; -1: of all. Throws Error where an input is no number.
  Calibration(const Model& model, Engine& engine, std::span<const TokenId> tokens, int n_ctx, bool want_feedback,
              WeightId only = -1);

  // Of the matrix with this id; nullptr where nothing multiplies by it. Without feedback, `u` is empty.
  const Feedback* Find(WeightId id) const;
  bool has_feedback() const { return has_feedback_; }
  int64_t n_tokens() const { return n_tokens_; }

 private:
  bool has_feedback_;
  int64_t n_tokens_ = 0;
  std::map<WeightId, WeightId> key_of_;  // matrix to the first one that reads the same
  std::map<WeightId, Feedback> inputs_;  // by key
};

}  // namespace thermocline
