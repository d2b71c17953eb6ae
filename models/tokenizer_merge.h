// The merge loop both tokenizer families share: of all neighbouring symbols that may merge, the pair of lowest rank
// does, the leftmost of equals, until none may.
//
// A heap of all pairs would cost O(n log n) with a cache miss per level: over 8 s for 10 MB of one character. But
// pairs of one rank come up almost always from left to right, so each rank keeps a list of positions in order, and
// only ranks stand in a heap.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

#include "models/tokenizer.h"

namespace thermocline {

inline constexpr uint32_t kNoMerge = UINT32_MAX;

struct PairMerge {
  uint32_t rank = kNoMerge;
  TokenId id = -1;  // what the pair becomes
};

struct MergeSymbol {
  uint32_t begin, bytes;  // in the text
  TokenId id;             // -1: no token of its own
  int32_t prev = -1, next = -1;
  uint32_t rank = kNoMerge;  // of merging with the next symbol
};

// Positions by rank, lowest rank first, and from left to right within a rank.
class MergeQueue {
 public:
  void Push(uint32_t rank, uint32_t position) {
    const auto [at, is_new] = buckets_.try_emplace(rank);
    Bucket& bucket = at->second;
    if (is_new) ranks_.push(rank);
    if (bucket.ascending.empty() || bucket.ascending.back() <= position) {
      bucket.ascending.push_back(position);
    } else {
      bucket.late.push(position);
    }
  }

  // False when nothing is left.
  bool Pop(uint32_t& rank, uint32_t& position) {
    while (!ranks_.empty()) {
      rank = ranks_.top();
      Bucket& bucket = buckets_.find(rank)->second;
      const bool ascending_left = bucket.taken < bucket.ascending.size();
      if (!bucket.late.empty() && (!ascending_left || bucket.late.top() < bucket.ascending[bucket.taken])) {
        position = bucket.late.top();
        bucket.late.pop();
        return true;
      }
      if (ascending_left) {
        position = bucket.ascending[bucket.taken++];
        return true;
      }
      buckets_.erase(rank);
      ranks_.pop();
    }
    return false;
  }

 private:
  struct Bucket {
    std::vector<uint32_t> ascending;
    size_t taken = 0;
    std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> late;
  };
  std::unordered_map<uint32_t, Bucket> buckets_;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks_;  // one entry per bucket
};

// Merges `symbols`, whose `begin`, `bytes` and `id` are set, in place: what is left is the list from symbols[0] along
// `next`. `lookup(left, right)` is the PairMerge of two symbols.
template <typename Lookup>
class Merger {
 public:
  Merger(std::vector<MergeSymbol>& symbols, const Lookup& lookup) : symbols_(symbols), lookup_(lookup) {
    const auto n = static_cast<int32_t>(symbols_.size());
    for (int32_t i = 0; i < n; ++i) {
      symbols_[i].prev = i - 1;
      symbols_[i].next = i + 1 < n ? i + 1 : -1;
    }
    for (int32_t i = 0; i + 1 < n; ++i) SetRank(i);
  }

  void Run() { symbols_.size() <= kShort ? RunShort() : RunLong(); }

  // For words of a few symbols a scan per merge beats any queue.
  void RunShort() {
    if (symbols_.empty()) return;
    while (true) {
      int32_t best = 0;
      for (int32_t i = symbols_[0].next; i >= 0; i = symbols_[i].next) {
        if (symbols_[i].rank < symbols_[best].rank) best = i;
      }
      if (symbols_[best].rank == kNoMerge) return;
      Merge(best);
    }
  }

  void RunLong() {
    MergeQueue queue;
    const auto push = [&](int32_t i) {
      if (i >= 0 && symbols_[i].rank != kNoMerge) queue.Push(symbols_[i].rank, static_cast<uint32_t>(i));
    };
    for (int32_t i = 0; i < static_cast<int32_t>(symbols_.size()); ++i) push(i);
    uint32_t rank = 0, position = 0;
    while (queue.Pop(rank, position)) {
      const auto i = static_cast<int32_t>(position);
      if (symbols_[i].rank != rank) continue;  // the pair has changed since
      Merge(i);
      push(symbols_[i].prev);
      push(i);
    }
  }

 private:
  static constexpr size_t kShort = 48;

  void SetRank(int32_t i) {
    MergeSymbol& symbol = symbols_[i];
    symbol.rank = symbol.next < 0 ? kNoMerge : lookup_(symbol, symbols_[symbol.next]).rank;
  }

  void Merge(int32_t i) {
    MergeSymbol& left = symbols_[i];
    MergeSymbol& right = symbols_[left.next];
    left.id = lookup_(left, right).id;
    left.bytes += right.bytes;
    left.next = right.next;
    right.rank = kNoMerge;
    if (left.next >= 0) symbols_[left.next].prev = i;
    SetRank(i);
    if (left.prev >= 0) SetRank(left.prev);
  }

  std::vector<MergeSymbol>& symbols_;
  const Lookup& lookup_;
};

}  // namespace thermocline
