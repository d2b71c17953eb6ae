// attention_split over the shapes of three models: decode reads the KV of 4096 tokens from memory (GB/s of KV), a
// prompt's span finds each page in cache (GFLOP/s of both products).
//
//   ninja kernel_bench && bench/kernels/kernel_bench --benchmark_filter=Attention
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <random>
#include <string>
#include <vector>

#include "cpu/buffer.h"
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
  Kv(const VectorOps& ops, const Shape& shape, KvTypes types, int n_tokens)
      : head_dim_(shape.head_dim),
        n_kv_(shape.n_kv),
        types_(types),
        n_pages_(int64_t{shape.n_kv} * n_tokens / kPageTokens) {
    data_ = Buffer(n_pages_ * PageBytes(), "a benchmark");
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    std::vector<float> key(4 * head_dim_);
    for (float& x : key) x = normal(engine);
    for (int64_t page = 0; page < n_pages_; ++page)
      for (int slot = 0; slot < kPageTokens; ++slot) {
        const float* from = key.data() + engine() % (2 * head_dim_);
        ops.store_kv(types_, from, from + head_dim_, head_dim_, slot, Page(page));
      }
  }
  int64_t n_pages() const { return n_pages_; }
  KvTypes types() const { return types_; }
  int64_t PageBytes() const { return KvHeadBytes(types_, head_dim_); }
  // The i-th page in the order of reading: a head's pages lie apart, as those of all heads of 64 tokens are together.
  uint8_t* Page(int64_t i) const {
    const int64_t per_head = n_pages_ / n_kv_, head = i / per_head, page = i % per_head;
    return data_.data() + (page * n_kv_ + head) * PageBytes();
  }

 private:
  int head_dim_, n_kv_;
  KvTypes types_;
  int64_t n_pages_;
  Buffer data_;
};

// One iteration is one split; consecutive ones walk through `kv`.
void RunSplits(benchmark::State& state, const VectorOps& ops, const Shape& shape, const Kv& kv, int n_queries,
               bool prompt) {
  const int first_token = 4096 - kSplitTokens;
  std::vector<float> q(n_queries * shape.head_dim), max(n_queries), sum(n_queries), acc(q.size());
  const std::vector<int32_t> position(n_queries, 4096);
  std::mt19937 engine(2);
  for (float& x : q) x = std::normal_distribution<float>(0, 0.2f)(engine);
  const uint8_t* pages[kSplitPages];
  int64_t at = 0;
  for (auto _ : state) {
    for (int p = 0; p < kSplitPages; ++p) pages[p] = kv.Page(at + p);
    at = (at + kSplitPages) % kv.n_pages();
    ops.attention_split({q.data(), position.data(), n_queries, shape.head_dim, 0, prompt, kv.types(), pages,
                         kSplitPages, kv.Page(at), first_token, max.data(), sum.data(), acc.data()});
    benchmark::ClobberMemory();
  }
  const double bytes = double(kSplitPages) * kv.PageBytes();
  const double flops = 4.0 * n_queries * shape.head_dim * kSplitTokens;
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

const bool kRegistered = [] {
  for (const Shape& shape : kShapes)
    for (Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
      if (!CanRun(isa)) continue;
      const VectorOps& ops = VectorOpsFor(isa);
      for (const DType type : {DType::kF16, DType::kQ8_0})
        for (const bool decode : {true, false}) {
          const std::string name = fmt::format("{}/{}/{}/{}", decode ? "AttentionDecode4096" : "AttentionPrompt",
                                               shape.name, Info(type).name, Name(isa));
          benchmark::RegisterBenchmark(name.c_str(), [=, &ops](benchmark::State& state) {
            const Shape heads = decode ? shape : Shape{shape.name, shape.group, shape.head_dim, 1};
            const Kv kv(ops, heads, {type, type}, decode ? 4096 : kSplitTokens);
            RunSplits(state, ops, heads, kv, decode ? shape.group : kMaxQueries, !decode);
          });
        }
    }
  return true;
}();

}  // namespace
}  // namespace thermocline
