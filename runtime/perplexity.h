// Perplexity by llama.cpp's protocol: chunks of n_ctx tokens, the first of each overwritten by BOS where the model
// wants one, the second half scored, the tail dropped.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "models/tokenizer.h"
#include "runtime/engine.h"

namespace thermocline {

struct PerplexityResult {
  std::vector<double> running;  // after each chunk; the last one is the result
  int64_t tokens = 0;           // scored
};

struct PerplexityOptions {
  int n_ctx = 512;
  int64_t max_chunks = -1;  // < 0: all
  RowKind kind = RowKind::kPrompt;
  int step_rows = kMaxBatchRows;  // at most
};

// Throws Error when the tokens fill no chunk.
PerplexityResult MeasurePerplexity(Engine& engine, const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                                   const PerplexityOptions& options,
                                   const std::function<void(const PerplexityResult&, int64_t n_chunks)>& on_chunk);

// -log softmax(logits)[token], in double.
double NegativeLogLikelihood(std::span<const float> logits, TokenId token);

}  // namespace thermocline
