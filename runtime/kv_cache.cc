#include "runtime/kv_cache.h"

#include <algorithm>
#include <random>

#include "models/check.h"

namespace thermocline {
namespace {

int PagesOf(int n_tokens) { return (n_tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

int64_t KvCache::PagesFor(const ModelConfig& config, int kind, int n_ctx, int max_rows) {
  const int64_t all = PagesOf(n_ctx);
  if (!HasWindow(kind)) return all;
  // A step needs the window of its first row and its own rows, which may begin and end within pages.
  return std::min<int64_t>(all, PagesOf(config.window) + PagesOf(max_rows) + 1);
}

int64_t KvCache::DevicePagesFor(const ModelConfig& config, const KvLayout& layout, int kind, int n_ctx, int max_rows) {
  if (!IsOnDevice(kind)) return 0;
  const int64_t all = PagesFor(config, kind, n_ctx, max_rows);
  return kind == kSplitKind ? std::min<int64_t>(all, layout.device_tokens / kPageTokens) : all;
}

int64_t KvCache::DeviceBytesFor(const ModelConfig& config, const KvLayout& layout, int kind, int n_ctx, int max_rows) {
  return layout.page_bytes[kind] * DevicePagesFor(config, layout, kind, n_ctx, max_rows);
}

int64_t KvCache::BytesFor(const ModelConfig& config, KvTypes types, int n_ctx, int max_rows) {
  const KvLayout layout(config, types);
  int64_t bytes = 0;
  for (int kind = 0; kind < kLayerKinds; ++kind)
    bytes += layout.page_bytes[kind] * PagesFor(config, kind, n_ctx, max_rows);
  return bytes;
}

KvCache::KvCache(const ModelConfig& config, const KvLayout& layout, int n_ctx, int max_sequences, int max_rows,
                 uint64_t seed, const std::array<uint64_t, kLayerKinds>& device)
    : layout_(layout), window_(config.window), sequences_(max_sequences) {
  std::mt19937_64 rng(seed);
  const auto fill = [&](Pool& pool, int64_t n_pages, int64_t page_bytes, uint8_t* memory) {
    pool.n_pages = n_pages;
    pool.page_bytes = page_bytes;
    if (!memory) {
      pool.memory = Buffer(n_pages * page_bytes, "the context");
      memory = pool.memory.data();
    }
    for (int64_t i = n_pages - 1; i >= 0; --i) pool.free.push_back(memory + i * page_bytes);
    if (seed)
      for (size_t i = pool.free.size(); i > 1; --i) std::swap(pool.free[i - 1], pool.free[rng() % i]);
  };
  for (int kind = 0; kind < kLayerKinds; ++kind) {
    if (layout_.page_bytes[kind] == 0) continue;
    const int64_t all = PagesFor(config, kind, n_ctx, max_rows);
    const int64_t on_device = DevicePagesFor(config, layout_, kind, n_ctx, max_rows);
    if (!IsOnDevice(kind)) {
      fill(pools_[kind], all * max_sequences, layout_.page_bytes[kind], nullptr);
    } else {
      fill(pools_[kind], on_device * max_sequences, layout_.page_bytes[kind], reinterpret_cast<uint8_t*>(device[kind]));
      if (all > on_device) fill(rest_, (all - on_device) * max_sequences, layout_.page_bytes[kind], nullptr);
    }
    for (Sequence& sequence : sequences_) sequence.pages[kind].assign(PagesOf(n_ctx), nullptr);
  }
}

void KvCache::Reserve(int id, int n) {
  Sequence& sequence = sequences_[id];
  for (int kind = 0; kind < kLayerKinds; ++kind) {
    if (layout_.page_bytes[kind] == 0) continue;
    std::vector<uint8_t*>& pages = sequence.pages[kind];
    const int end = PagesOf(sequence.length + n);
    CHECK(end <= static_cast<int>(pages.size()));
    for (int i = sequence.length / kPageTokens; i < end; ++i) {
      if (pages[i]) continue;
      Pool& pool = PoolOf(kind, i);
      CHECK(!pool.free.empty());
      pages[i] = pool.free.back();
      pool.free.pop_back();
    }
  }
}

void KvCache::Commit(int id, int n) {
  Sequence& sequence = sequences_[id];
  sequence.length += n;
  if (window_ == 0) return;
  // The next row, at position `length`, sees tokens from length - window + 1 on.
  const int end = std::max(0, sequence.length - window_ + 1) / kPageTokens;
  for (int kind = 0; kind < kLayerKinds; ++kind)
    if (HasWindow(kind)) Free(sequence, kind, sequence.first_page, end);
  sequence.first_page = std::max(sequence.first_page, end);
}

int KvCache::Truncate(int id, int n) {
  Sequence& sequence = sequences_[id];
  CHECK(n >= 0 && n <= sequence.length);
  if (window_ != 0 && std::max(0, n - window_ + 1) / kPageTokens < sequence.first_page) n = 0;
  for (int kind = 0; kind < kLayerKinds; ++kind)
    Free(sequence, kind, PagesOf(n), static_cast<int>(sequence.pages[kind].size()));
  if (n == 0) sequence.first_page = 0;
  return sequence.length = n;
}

void KvCache::Free(Sequence& sequence, int kind, int begin, int end) {
  std::vector<uint8_t*>& pages = sequence.pages[kind];
  for (int i = begin; i < std::min(end, static_cast<int>(pages.size())); ++i) {
    if (!pages[i]) continue;
    PoolOf(kind, i).free.push_back(pages[i]);
    pages[i] = nullptr;
  }
}

int64_t KvCache::bytes_in_use() const {
  const auto in_use = [](const Pool& pool) { return (pool.n_pages - std::ssize(pool.free)) * pool.page_bytes; };
  int64_t bytes = in_use(rest_);
  for (const Pool& pool : pools_) bytes += in_use(pool);
  return bytes;
}

}  // namespace thermocline
