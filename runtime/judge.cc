#include "runtime/judge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "cpu/topology.h"
#include "models/dtype.h"
#include "models/error.h"
#include "runtime/perplexity.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

constexpr int kScoredRows = 128;     // as in perplexity.cc
constexpr double kMemoryPart = 0.2;  // of the memory that is free, for the reference's predictions

// log of the sum of e^logits.
double LogSum(std::span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

}  // namespace

template <typename Score>
void Judge::Run(Engine& engine, const Score& score) const {
  const int first = n_ctx_ / 2, sequence = engine.NewSequence();
  int64_t n_scored = 0;
  Batch batch;
  Progress progress("judging", "tokens");
  for (size_t chunk = 0; chunk < tokens_.size(); chunk += static_cast<size_t>(n_ctx_)) {
    const auto text = std::span(tokens_).subspan(chunk, static_cast<size_t>(n_ctx_));
    engine.Truncate(sequence, 0);
    for (int position = 0; position < n_ctx_ - 1;) {
      const bool scored = position >= first;
      const int end = scored ? std::min(n_ctx_ - 1, position + kScoredRows) : std::min(first, position + kMaxBatchRows);
      batch.clear();
      for (int i = position; i < end; ++i)
        batch.push_back({i == 0 && tokenizer_.add_bos() ? tokenizer_.bos() : text[i], sequence, i, kind_, scored});
      engine.Step(batch);
      if (scored) {
        std::atomic<int> claimed = position;
        const auto work = [&] {
          for (int i; (i = claimed++) < end;) score(n_scored + i - position, engine.Logits(i - position), text[i + 1]);
        };
        std::vector<std::jthread> helpers;
        for (int i = 1; i < engine.n_threads(); ++i) helpers.emplace_back(work);
        work();
        helpers.clear();
        n_scored += end - position;
      }
      position = end;
      progress.Update(static_cast<int64_t>(chunk) + position, static_cast<int64_t>(tokens_.size()));
    }
  }
  engine.FreeSequence(sequence);
}

Judge::Judge(Engine& reference, const Tokenizer& tokenizer, std::span<const TokenId> tokens, int n_ctx, RowKind kind)
    : tokenizer_(tokenizer), n_ctx_(n_ctx), kind_(kind) {
  const int64_t per_chunk = n_ctx - 1 - n_ctx / 2, n_vocab = reference.config().n_vocab;
  const double memory = kMemoryPart * static_cast<double>(DetectTopology().memory_available_bytes);
  const auto fits = static_cast<int64_t>(memory / static_cast<double>(per_chunk * n_vocab * 2));
  const int64_t n_chunks = std::min(static_cast<int64_t>(tokens.size()) / n_ctx, std::max<int64_t>(1, fits));
  if (n_chunks == 0)
    throw Error("the text to judge by has {} tokens, fewer than the {} that are needed: take a longer text",
                tokens.size(), n_ctx);
  tokens_.assign(tokens.begin(), tokens.begin() + n_chunks * n_ctx);
  reference_nll_.resize(static_cast<size_t>(n_chunks * per_chunk));
  reference_log_p_.resize(reference_nll_.size() * static_cast<size_t>(n_vocab));
  Run(reference, [&](int64_t i, std::span<const float> logits, TokenId next) {
    const double sum = LogSum(logits);
    reference_nll_[static_cast<size_t>(i)] = sum - logits[next];
    uint16_t* log_p = reference_log_p_.data() + i * n_vocab;
    for (int64_t j = 0; j < n_vocab; ++j) log_p[j] = FloatToHalf(static_cast<float>(logits[j] - sum));
  });
  if (!std::isfinite(reference_perplexity()))
    throw Error("the model's output is not a number: the model file is damaged, or its numbers overflow");
}

double Judge::reference_perplexity() const {
  double sum = 0;
  for (const double nll : reference_nll_) sum += nll;
  return std::exp(sum / static_cast<double>(reference_nll_.size()));
}

Judgement Judge::Measure(Engine& engine) const {
  const size_t n = reference_nll_.size();
  const int64_t n_vocab = engine.config().n_vocab;
  std::vector<double> nll(n), kl(n);
  Run(engine, [&](int64_t i, std::span<const float> logits, TokenId next) {
    const double sum = LogSum(logits);
    nll[static_cast<size_t>(i)] = sum - logits[next];
    const uint16_t* log_p = reference_log_p_.data() + i * n_vocab;
    double divergence = 0, mass = 0;
    for (int64_t j = 0; j < n_vocab; ++j) {
      const float reference = HalfToFloat(log_p[j]);
      if (reference < -20) continue;  // 2e-9 of the whole
      const double p = std::exp(reference);
      mass += p;
      divergence += p * (reference - (logits[j] - sum));
    }
    // The probabilities were rounded: as they are, they do not sum to 1.
    kl[static_cast<size_t>(i)] = mass > 0 ? divergence / mass - std::log(mass) : 0;
  });
  Judgement judgement;
  double sum = 0, difference = 0, squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const double d = nll[i] - reference_nll_[i];
    sum += nll[i];
    difference += d;
    squares += d * d;
    judgement.kl += kl[i] / static_cast<double>(n);
  }
  const double count = static_cast<double>(n), mean = difference / count;
  judgement.perplexity = std::exp(sum / count);
  judgement.loss = std::exp(mean) - 1;
  judgement.loss_error = std::sqrt(std::max(0.0, squares / count - mean * mean) / count) * (1 + judgement.loss);
  return judgement;
}

}  // namespace thermocline
