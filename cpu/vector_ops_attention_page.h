// What attention over pages of either type shares: the state of a page, softmax, and how queries are cut into tiles,
// over the vector type V of vector_ops_generic.h, and
//
//   V::kTileVectors   registers of K or V in a wide tile
//   V::kTileQueries   its queries, at most, so that kTileQueries * kTileVectors sums stay in registers
//
// A tall tile has twice the queries and half the registers.
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

// What one page does to each query.
struct PageState {
  alignas(64) float weights[kMaxQueries][kPageTokens];  // scores, then exp(score - max), in hidden slots 0
  float rescale[kMaxQueries];                           // what earlier pages' sums are multiplied by
  alignas(64) float below[kMaxQueries];                 // by how much the page's largest score is below the max, <= 0
  int begin[kMaxQueries], end[kMaxQueries];             // visible slots; begin == end: none

  uint64_t Visible(int i) const {
    return begin[i] == end[i] ? 0 : (~uint64_t{0} >> (kPageTokens - (end[i] - begin[i]))) << begin[i];
  }
};

// Scores of one query to weights; updates its running maximum and sum.
template <typename V>
void Softmax(PageState& page, int i, float* max, float* sum) {
  constexpr int L = V::kLanes;
  const uint64_t visible = page.Visible(i);
  if (visible == 0) {
    page.rescale[i] = 1, page.below[i] = 0;
    for (int t = 0; t < kPageTokens; t += L) V::Store(page.weights[i] + t, V::Set(0.f));
    return;
  }
  const auto hidden_score = V::Set(-kInfinity);
  auto largest = hidden_score;
  for (int t = 0; t < kPageTokens; t += L)
    largest = V::Max(largest, V::Select(visible >> t, V::Load(page.weights[i] + t), hidden_score));
  const float page_max = V::ReduceMax(largest), new_max = page_max > *max ? page_max : *max;
  auto total = V::Set(0.f);
  for (int t = 0; t < kPageTokens; t += L) {
    const auto weight = Exp<V>(V::Sub(V::Load(page.weights[i] + t), V::Set(new_max)));
    const auto seen = V::Select(visible >> t, weight, V::Set(0.f));
    V::Store(page.weights[i] + t, seen);
    total = V::Add(total, seen);
  }
  // Most pages leave the maximum as it was; e^0 is exactly 1.
  page.rescale[i] = new_max == *max ? 1.f : *max == -kInfinity ? 0.f : ExpOf<V>(*max - new_max);
  page.below[i] = page_max - new_max;
  *sum = *sum * page.rescale[i] + V::ReduceAdd(total);
  *max = new_max;
}

// Memory is read in order: half a page (8 KiB at head_dim 64) ahead of use covers its latency, and goes to L2, whose
// queue is the longer one. Measured with huge pages, one core: 13.5 GB/s of a plain stream's 17; into L1 less, without
// prefetch 7 (bench/kernels/attention_bench.cc).
template <int kBytes>
void PrefetchNext(const uint8_t*& ahead) {
  if (ahead == nullptr) return;
  for (int i = 0; i < kBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
  ahead += kBytes;
}

// Calls tile.operator()<kVectors, height>(first) for a height of 1 to kMost.
template <int kVectors, int kMost, typename Tile>
void OfHeight(int height, int first, const Tile& tile) {
  if (height == kMost) {
    tile.template operator()<kVectors, kMost>(first);
  } else if constexpr (kMost > 1) {
    OfHeight<kVectors, kMost - 1>(height, first, tile);
  }
}
// In several, as even as possible.
template <int kVectors, int kMost, typename Tile>
void EvenTiles(int n_queries, const Tile& tile) {
  for (int first = 0; first < n_queries;) {
    const int rest = n_queries - first, n_tiles = (rest + kMost - 1) / kMost, height = (rest + n_tiles - 1) / n_tiles;
    OfHeight<kVectors, kMost>(height, first, tile);
    first += height;
  }
}
template <typename V, typename Tile>
void WideTiles(int n_queries, const Tile& tile) {
  EvenTiles<V::kTileVectors, V::kTileQueries>(n_queries, tile);
}
template <typename V, typename Tile>
void TallTiles(int n_queries, const Tile& tile) {
  EvenTiles<V::kTileVectors / 2, 2 * V::kTileQueries>(n_queries, tile);
}

}  // namespace
}  // namespace thermocline
