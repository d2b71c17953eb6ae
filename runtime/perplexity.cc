#include "runtime/perplexity.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>

#include "models/error.h"

namespace thermocline {
namespace {

// Rows that ask for logits at a time: with 262144 tokens of vocabulary they are 128 MiB.
constexpr int kScoredRows = 128;

// The sum over rows i of the batch of the surprise at next[i]; shared among threads, added in order.
double Score(const Engine& engine, std::span<const TokenId> next) {
  std::vector<double> nll(next.size());
  std::atomic<size_t> claimed = 0;
  const auto work = [&] {
    for (size_t i; (i = claimed++) < next.size();) {
      nll[i] = NegativeLogLikelihood(engine.Logits(static_cast<int>(i)), next[i]);
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int i = 1; i < engine.n_threads(); i++) helpers.emplace_back(work);
    work();
  }
  double sum = 0;
  for (const double value : nll) sum += value;
  return sum;
}

}  // namespace

double NegativeLogLikelihood(std::span<const float> logits, TokenId token) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum) - logits[token];
}

PerplexityResult MeasurePerplexity(Engine& engine, const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                                   const PerplexityOptions& options,
                                   const std::function<void(const PerplexityResult&, int64_t n_chunks)>& on_chunk) {
  const int n_ctx = options.n_ctx;
  int64_t n_chunks = static_cast<int64_t>(tokens.size()) / n_ctx;
  if (n_chunks == 0) {
    throw Error("the text has {} tokens, too few for one chunk of {}: take a longer text or a smaller --ctx",
                tokens.size(), n_ctx);
  }
  if (options.max_chunks >= 0) n_chunks = std::min(n_chunks, options.max_chunks);

  const int sequence = engine.NewSequence();
  const int first = n_ctx / 2;  // the first position whose prediction is scored
  PerplexityResult result;
  double nll = 0;
  Batch batch;
  for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
    const auto text = tokens.subspan(static_cast<size_t>(chunk * n_ctx), n_ctx);
    engine.Truncate(sequence, 0);
    for (int position = 0; position < n_ctx - 1;) {
      // The last token's own logits predict what lies beyond the chunk.
      const bool scored = position >= first;
      const int rows = std::min(options.step_rows, scored ? kScoredRows : kMaxBatchRows);
      const int end = std::min(scored ? n_ctx - 1 : first, position + rows);
      batch.clear();
      for (int i = position; i < end; i++) {
        const TokenId token = i == 0 && tokenizer.add_bos() ? tokenizer.bos() : text[i];
        batch.push_back({token, sequence, i, options.kind, scored});
      }
      engine.Step(batch);
      if (scored) nll += Score(engine, text.subspan(position + 1, end - position));
      position = end;
    }
    result.tokens += n_ctx - 1 - first;
    result.running.push_back(std::exp(nll / static_cast<double>(result.tokens)));
    if (!std::isfinite(result.running.back())) {
      throw Error("the model's output is not a number in chunk {}: the model file is damaged, or its numbers overflow",
                  chunk + 1);
    }
    if (on_chunk) on_chunk(result, n_chunks);
  }
  engine.FreeSequence(sequence);
  return result;
}

}  // namespace thermocline
