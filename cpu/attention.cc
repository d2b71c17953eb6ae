#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "models/check.h"

namespace thermocline {
namespace {

constexpr int kPagesPerSplit = kSplitTokens / kPageTokens;
// Queries of a block where there are not enough blocks of kMaxQueries to share out.
constexpr int kFewQueries = 32;

int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace

void MergeStates(const VectorOps& ops, int n_head, int head_dim, const float* other, float* state, float* out) {
  float* acc = state + 2 * n_head;
  ops.attention_merge(n_head, head_dim, other, other + n_head, other + 2 * n_head, state, state + n_head, acc);
  for (int head = 0; head < n_head; ++head) {
    const float inverse = 1 / state[n_head + head];
    for (int i = 0; i < head_dim; ++i) out[head * head_dim + i] = acc[head * head_dim + i] * inverse;
  }
}

Attention::States::States(int64_t n, int64_t n_queries, int head_dim)
    : n_queries_(RoundUp(n_queries, 16)),
      floats_(2 * n_queries_ + RoundUp(n_queries * head_dim, 16)),
      buffer_(n * floats_ * static_cast<int64_t>(sizeof(float)), "attention") {}

Attention::State Attention::States::At(int64_t i) const {
  float* base = buffer_.as<float>() + i * floats_;
  return {base, base + n_queries_, base + 2 * n_queries_};
}

// Groups of more than kMaxQueries heads go through AttentionSplit in pieces.
Attention::Attention(const VectorOps& ops, const ModelConfig& config, const KvLayout& layout, int max_rows,
                     int n_threads)
    : ops_(ops),
      layout_(layout),
      head_dim_(config.head_dim),
      n_head_kv_(config.n_head_kv),
      group_(config.n_head / config.n_head_kv),
      few_rows_(std::max(1, kFewQueries / group_)),
      many_rows_(std::max(1, kMaxQueries / group_)),
      n_threads_(n_threads),
      queries_floats_(RoundUp(int64_t{many_rows_} * group_ * head_dim_, 16) + RoundUp(many_rows_ * group_, 16)),
      partials_(2 * n_threads * kWave, few_rows_ * group_, head_dim_),  // SplitsApart
      items_(2 * n_threads, few_rows_ * group_, head_dim_),
      members_(2 * n_threads, many_rows_ * group_, head_dim_),
      queries_(n_threads * queries_floats_ * static_cast<int64_t>(sizeof(float)), "attention") {
  blocks_.reserve(max_rows);
}

void Attention::Prepare(const StepView& step) {
  blocks_.clear();
  const int64_t n_large =
      std::accumulate(step.spans.begin(), step.spans.end(), int64_t{0},
                      [&](int64_t n, const SpanView& span) { return n + span.n_rows / many_rows_; });
  const int most = n_large * n_head_kv_ >= 4 * n_threads_ ? many_rows_ : few_rows_;
  int last = 0;
  for (const SpanView& span : step.spans) {
    for (int row = 0, n; row < span.n_rows; row += n) {
      const bool prompt = step.prompt[span.first_row + row];
      for (n = 1; n < most && row + n < span.n_rows && (step.prompt[span.first_row + row + n] != 0) == prompt;) ++n;
      blocks_.push_back({&span, span.first_row + row, n, span.first_position + row, prompt});
    }
    last = std::max(last, span.first_position + span.n_rows - 1);
  }
  n_splits_ = last / kSplitTokens + 1;
}

bool Attention::SplitsApart(const AttentionIo& io) const {
  const int64_t n_items = static_cast<int64_t>(blocks_.size()) * n_head_kv_;
  const bool several = n_splits_ > 1 && (io.window == 0 || io.window > kSplitTokens);
  return several && n_items <= 2 * n_threads_;
}

bool Attention::Visible(const Block& block, int64_t split, const AttentionIo& io) const {
  const int64_t first_token = std::max<int64_t>(split * kSplitTokens, io.first_token);
  const int64_t end_token = std::min<int64_t>((split + 1) * kSplitTokens, io.end_token);
  const int last_position = block.first_position + block.n_rows - 1;
  if (first_token > last_position || first_token >= end_token) return false;
  return io.window == 0 || end_token > block.first_position - io.window + 1;
}

bool Attention::ComputeSplit(int member, int64_t item, int64_t split, const State& out, const AttentionIo& io) const {
  const Block& block = BlockOf(item);
  if (!Visible(block, split, io)) return false;
  const int64_t kv_head = item % n_head_kv_;
  const int n_queries = block.n_rows * group_;
  float* q = MemberQueries(member);
  int32_t* position = reinterpret_cast<int32_t*>(q + RoundUp(static_cast<int64_t>(n_queries) * head_dim_, 16));
  for (int row = 0; row < block.n_rows; ++row) {
    const float* source = io.q + (block.first_row + row) * io.q_stride + kv_head * group_ * head_dim_;
    for (int i = 0; i < group_ * head_dim_; ++i) q[row * group_ * head_dim_ + i] = source[i] * io.scale;
    for (int g = 0; g < group_; ++g) position[row * group_ + g] = block.first_position + row;
  }

  const int first_seen = std::max(io.first_token, io.window ? block.first_position - io.window + 1 : 0);
  const int last_seen = std::min(block.first_position + block.n_rows, io.end_token) - 1;
  const int first_page = std::max<int>(split * kPagesPerSplit, first_seen / kPageTokens);
  const int end_page = std::min<int>((split + 1) * kPagesPerSplit, last_seen / kPageTokens + 1);
  const auto page_at = [&](int p) -> const uint8_t* {
    const uint8_t* page = block.span->pages[io.layer.kind][p];
    CHECK(page != nullptr);
    return page + io.layer.offset_bytes + kv_head * layout_.head_bytes;
  };
  const uint8_t* pages[kPagesPerSplit];
  for (int p = first_page; p < end_page; ++p) pages[p - first_page] = page_at(p);
  const uint8_t* next = end_page <= last_seen / kPageTokens ? page_at(end_page) : nullptr;
  for (int i = 0; i < n_queries; i += kMaxQueries) {
    const int64_t at = static_cast<int64_t>(i) * head_dim_;
    ops_.attention_split({q + at, position + i, std::min(kMaxQueries, n_queries - i), head_dim_, io.window,
                          block.prompt, layout_.types, pages, end_page - first_page, next, first_page * kPageTokens,
                          out.max + i, out.sum + i, out.acc + at});
  }
  return true;
}

void Attention::Reset(const Block& block, const State& state) const {
  const int n_queries = block.n_rows * group_;
  std::fill_n(state.max, n_queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, n_queries, 0.f);
  std::fill_n(state.acc, static_cast<int64_t>(n_queries) * head_dim_, 0.f);
}

void Attention::Merge(const Block& block, const State& part, const State& total) const {
  ops_.attention_merge(block.n_rows * group_, head_dim_, part.max, part.sum, part.acc, total.max, total.sum, total.acc);
}

void Attention::WholeItem(int member, int64_t item, const AttentionIo& io) const {
  const State total = members_.At(2 * member), part = members_.At(2 * member + 1);
  bool any = false;
  for (int64_t split = 0; split < n_splits_; ++split) {
    if (!ComputeSplit(member, item, split, any ? part : total, io)) continue;
    if (any) Merge(BlockOf(item), part, total);
    any = true;
  }
  if (!any) Reset(BlockOf(item), total);
  Store(item, total, io);
}

void Attention::MergeWave(int64_t item, int64_t wave, bool last, const AttentionIo& io) const {
  const State total = ItemState(item);
  if (wave == 0) Reset(BlockOf(item), total);
  for (int64_t i = 0; i < kWave; ++i)
    if (Visible(BlockOf(item), wave * kWave + i, io)) Merge(BlockOf(item), PartialState(item * kWave + i), total);
  if (last) Store(item, total, io);
}

void Attention::StoreState(int64_t item, const State& total, const AttentionIo& io) const {
  const Block& block = BlockOf(item);
  const int64_t kv_head = item % n_head_kv_, n_head = n_head_kv_ * group_;
  for (int row = 0; row < block.n_rows; ++row) {
    float* out = io.out + (block.first_row + row) * io.out_stride;
    for (int g = 0; g < group_; ++g) {
      const int query = row * group_ + g;
      const int64_t head = kv_head * group_ + g;
      out[head] = total.max[query];
      out[n_head + head] = total.sum[query];
      std::copy_n(total.acc + static_cast<int64_t>(query) * head_dim_, head_dim_, out + 2 * n_head + head * head_dim_);
    }
  }
}

void Attention::Store(int64_t item, const State& total, const AttentionIo& io) const {
  if (io.state) return StoreState(item, total, io);
  const Block& block = BlockOf(item);
  const int64_t kv_head = item % n_head_kv_;
  for (int row = 0; row < block.n_rows; ++row)
    for (int g = 0; g < group_; ++g) {
      const int query = row * group_ + g;
      const float inverse = 1 / total.sum[query];
      const float* acc = total.acc + static_cast<int64_t>(query) * head_dim_;
      float* out = io.out + (block.first_row + row) * io.out_stride + (kv_head * group_ + g) * head_dim_;
      for (int i = 0; i < head_dim_; ++i) out[i] = acc[i] * inverse;
    }
}

}  // namespace thermocline
