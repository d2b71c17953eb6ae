// attention_split over the shapes of three models: decode reads the KV of 4096 tokens from memory (GB/s of KV), a
// prompt's span finds each page in cache (GFLOP/s of both products).
//
//   ninja kernel_bench && bench/kernels/kernel_bench --benchmark_filter=Attention
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/vector_ops.h"

namespace thermocline {
namespace {

constexpr int kSplitPages = kSplitTokens / kPageTokens;

struct Shape {
  const char* name;
  int group, head_dim;  // query heads per KV head
  int n_kv;             // KV heads in all layers
};
constexpr Shape kShapes[] = {{"SmolLM2-135M", 3, 64, 90}, {"gemma3-270m", 4, 256, 18}, {"llama-1b", 8, 64, 88}};

// KV of all heads, as the engine lays it out for `n_tokens` of context.
class Kv {
 public:
  Kv(const VectorOps& ops, const Shape& shape, int n_tokens)
      : head_dim_(shape.head_dim), n_pages_(int64_t{shape.n_kv} * n_tokens / kPageTokens) {
    data_.reset(static_cast<uint16_t*>(std::aligned_alloc(4096, n_pages_ * PageElements() * sizeof(uint16_t))));
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    std::vector<float> key(4 * head_dim_);
    for (float& x : key) x = normal(engine);
    for (int64_t page = 0; page < n_pages_; ++page)
      for (int slot = 0; slot < kPageTokens; ++slot) {
        const float* from = key.data() + engine() % (2 * head_dim_);
        ops.store_kv(from, from + head_dim_, head_dim_, slot, Page(page));
      }
  }
  int64_t n_pages() const { return n_pages_; }
  int64_t PageElements() const { return int64_t{2} * head_dim_ * kPageTokens; }
  uint16_t* Page(int64_t i) const { return data_.get() + i * PageElements(); }

 private:
  struct Free {
    void operator()(uint16_t* p) const { std::free(p); }
  };
  int head_dim_;
  int64_t n_pages_;
  std::unique_ptr<uint16_t, Free> data_;
};

// One iteration is one split; consecutive ones walk through `kv`.
void RunSplits(benchmark::State& state, const VectorOps& ops, const Shape& shape, const Kv& kv, int n_queries) {
  const int first_token = 4096 - kSplitTokens;
  std::vector<float> q(n_queries * shape.head_dim, 0.05f), max(n_queries), sum(n_queries), acc(q.size());
  const std::vector<int32_t> position(n_queries, 4096);
  const uint16_t* pages[kSplitPages];
  int64_t at = 0;
  for (auto _ : state) {
    for (int p = 0; p < kSplitPages; ++p) pages[p] = kv.Page(at + p);
    at = (at + kSplitPages) % kv.n_pages();
    ops.attention_split({q.data(), position.data(), n_queries, shape.head_dim, 0, pages, kSplitPages, kv.Page(at),
                         first_token, max.data(), sum.data(), acc.data()});
    benchmark::ClobberMemory();
  }
  const double bytes = double(kSplitPages) * kv.PageElements() * sizeof(uint16_t);
  const double flops = 4.0 * n_queries * shape.head_dim * kSplitTokens;
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  for (const Shape& shape : kShapes)
    for (Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!CanRun(isa)) continue;
      const VectorOps& ops = VectorOpsFor(isa);
      const std::string suffix = "/" + std::string(shape.name) + "/" + std::string(Name(isa));
      for (const auto& [name, n_tokens, n_queries] :
           {std::tuple{"AttentionDecode4096", 4096, shape.group}, std::tuple{"AttentionPrompt", 512, kMaxQueries}}) {
        benchmark::RegisterBenchmark((name + suffix).c_str(), [=, &ops](benchmark::State& state) {
          const Shape heads = n_tokens == 4096 ? shape : Shape{shape.name, shape.group, shape.head_dim, 1};
          const Kv kv(ops, heads, n_tokens);
          RunSplits(state, ops, heads, kv, n_queries);
        });
      }
    }
  return true;
}();

}  // namespace
}  // namespace thermocline
