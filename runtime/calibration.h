// What the products of a model read while it runs over a text: what decides which rounding errors matter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/feedback.h"
#include "models/tokenizer.h"
#include "runtime/engine.h"

namespace thermocline {

// Rows of a second moment that one member sums up at a time.
inline constexpr int64_t kGramRows = 48;

// For FactorFeedback, of second moments of k columns from so many tokens.
float Damping(int64_t k, int64_t n_tokens);

// A row much larger than the others, as the first tokens of a text often are, would hide them: their layer norm makes
// all that follows small again. Larger ones of the rows (n_rows, k) than their geometric mean become that large, and
// what each was multiplied by is returned. Throws Error where a row is no number.
std::vector<float> EvenOut(float* rows, int64_t k, int n_rows);

// Of what a matrix of `model` multiplies by while `engine`, which holds the model, runs `tokens` in chunks of n_ctx.
// Throws Error where an input is no number.
Feedback FeedbackOfInputs(const Model& model, WeightId weight, Engine& engine, std::span<const TokenId> tokens,
                          int n_ctx);

}  // namespace thermocline
