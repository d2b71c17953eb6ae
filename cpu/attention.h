// How one attention op is cut into work: blocks of rows of one span, times KV heads, times splits of the KV.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/executor.h"
#include "cpu/vector_ops.h"

namespace thermocline {

// What an attention op reads and writes, besides the pages.
struct AttentionIo {
  const float* q;  // (rows, n_head * head_dim), q_stride floats apart
  int64_t q_stride;
  float* out;  // (rows, n_head * head_dim), out_stride floats apart
  int64_t out_stride;
  int window;  // 0: all
  float scale;
  KvLayout::Layer layer;
  int first_token = 0, end_token = INT32_MAX;  // of the pages that are here: multiples of kPageTokens
  bool state = false;                          // leave unfinished, as OpKind::kAttentionState says
};

// out (n_head, head_dim) = attention over the tokens of both states, rows as OpKind::kAttentionState says. `state` is
// merged with the other one in place.
void MergeStates(const VectorOps& ops, int n_head, int head_dim, const float* other, float* state, float* out);

class Attention {
 public:
  Attention(const VectorOps& ops, const ModelConfig& config, const KvLayout& layout, int max_rows, int n_threads);

  // Once per step, on one member, before any Run.
  void Prepare(const StepView& step);
  // By all members. Splits are 512 tokens at multiples of 512 and merge in order, whoever computes them: a row's result
  // depends on nothing but its own query, keys and values.
  template <typename Then>
  void Run(Team::Member& member, const AttentionIo& io, const Then& then) {
    const int64_t n_items = static_cast<int64_t>(blocks_.size()) * n_head_kv_;
    if (!SplitsApart(io)) {
      member.For(
          n_items, 1, [&](int64_t item, int64_t) { WholeItem(member.index(), item, io); }, then);
      return;
    }
    // Few items: the splits of an item go to different members, a wave of kWave splits at a time.
    const int64_t n_waves = (n_splits_ + kWave - 1) / kWave;
    for (int64_t wave = 0; wave < n_waves; ++wave) {
      member.TracePart(1, n_waves);
      member.For(n_items * kWave, 1, [&](int64_t i, int64_t) {
        ComputeSplit(member.index(), i / kWave, wave * kWave + i % kWave, PartialState(i), io);
      });
      member.TracePart(0, n_waves);
      const auto merge = [&](int64_t item, int64_t) { MergeWave(item, wave, wave + 1 == n_waves, io); };
      if (wave + 1 < n_waves)
        member.For(n_items, 1, merge);
      else
        member.For(n_items, 1, merge, then);
    }
  }

  // The same, to the same bits, by the calling thread as member 0.
  void RunAlone(const AttentionIo& io) const {
    for (int64_t item = 0; item < std::ssize(blocks_) * n_head_kv_; ++item) WholeItem(0, item, io);
  }

 private:
  static constexpr int kWave = 16;

  struct Block {  // rows of one span and one kind that are attended for together
    const SpanView* span;
    int first_row, n_rows;  // of the batch
    int first_position;
    bool prompt;
  };
  struct State {  // of a block's queries against some of the keys, see AttentionSplit
    float *max, *sum, *acc;
  };
  class States {
   public:
    States(int64_t n, int64_t n_queries, int head_dim);
    State At(int64_t i) const;

   private:
    int64_t n_queries_, floats_;
    Buffer buffer_;
  };

  bool SplitsApart(const AttentionIo& io) const;
  // Of blocks of few rows, as splits go apart only where items are few.
  State PartialState(int64_t i) const { return partials_.At(i); }
  State ItemState(int64_t item) const { return items_.At(item); }
  float* MemberQueries(int member) const { return queries_.as<float>() + member * queries_floats_; }
  // False when no query of the block sees a token of the split; `out` is untouched then.
  bool ComputeSplit(int member, int64_t item, int64_t split, const State& out, const AttentionIo& io) const;
  void WholeItem(int member, int64_t item, const AttentionIo& io) const;
  void MergeWave(int64_t item, int64_t wave, bool last, const AttentionIo& io) const;
  bool Visible(const Block& block, int64_t split, const AttentionIo& io) const;
  void Reset(const Block& block, const State& state) const;
  void Merge(const Block& block, const State& part, const State& total) const;
  void Store(int64_t item, const State& total, const AttentionIo& io) const;
  void StoreState(int64_t item, const State& total, const AttentionIo& io) const;
  const Block& BlockOf(int64_t item) const { return blocks_[item / n_head_kv_]; }

  const VectorOps& ops_;
  const KvLayout& layout_;
  int head_dim_, n_head_kv_, group_;  // group: query heads per KV head
  int few_rows_, many_rows_;          // of a block
  int n_threads_;
  int64_t n_splits_ = 0;
  int64_t queries_floats_;
  std::vector<Block> blocks_;
  States partials_, items_, members_;
  Buffer queries_;
};

}  // namespace thermocline
