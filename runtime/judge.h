// How far a model is from another one that it is made of, on a text.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/tokenizer.h"
#include "runtime/engine.h"

namespace thermocline {

struct Judgement {
  double perplexity = 0;
  double loss = 0;        // perplexity over the reference's, minus 1
  double loss_error = 0;  // standard error of `loss`, of a text no longer than this
  double kl = 0;          // mean of KL(reference || model) over positions, in nats
};

// Keeps a reference model's predictions on a text, by the protocol of `perplexity`.
class Judge {
 public:
  // Scores at most as many chunks as fit into the memory that predictions may take. Throws Error when the tokens fill
  // no chunk or the model's output is no number.
  Judge(Engine& reference, const Tokenizer& tokenizer, std::span<const TokenId> tokens, int n_ctx, RowKind kind);

  Judgement Measure(Engine& engine) const;
  double reference_perplexity() const;
  int64_t n_scored() const { return static_cast<int64_t>(reference_nll_.size()); }

 private:
  // score(index of the scored position, logits, the token that comes next), by several threads at once
  template <typename Score>
  void Run(Engine& engine, const Score& score) const;

  const Tokenizer& tokenizer_;
  std::vector<TokenId> tokens_;  // whole chunks
  int n_ctx_;
  RowKind kind_;                           // of all rows
  std::vector<double> reference_nll_;      // by scored position
  std::vector<uint16_t> reference_log_p_;  // (n_scored, n_vocab) F16
};

}  // namespace thermocline
