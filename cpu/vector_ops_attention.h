// Attention over KV pages, over the vector type V of vector_ops_generic.h, and
//
//   V::kTileVectors   registers of K or V in one tile
//   V::kTileQueries   queries of a tile, so that kTileQueries * kTileVectors sums stay in registers
//
// One page at a time, all queries: scores (tokens across the lanes), softmax weights, weighted values (dims across the
// lanes). A tile converts each register of F16 once and uses it for all of its queries. What happens to one query is the
// same sequence of operations in a tile of any height: scores sum over d ascending, values over tokens ascending.
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

enum class Prefetch : bool { kNo, kYes };

// What one page does to each query.
struct PageState {
  alignas(64) float weights[kMaxQueries][kPageTokens];   // scores, then exp(score - max) in the visible slots
  float rescale[kMaxQueries];                            // what earlier pages' sums are multiplied by
  int begin[kMaxQueries], end[kMaxQueries];              // visible slots; begin == end: none
};

// scores[i][t] = q[i] . key[t] for kQueries queries and all slots. `ahead` is what will be read after these keys.
template <typename V, int kQueries, Prefetch kPrefetch>
void ScoreTile(const float* q, int head_dim, const uint16_t* keys, const uint16_t* ahead,
               float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = V::kTileVectors;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::F sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = V::Set(0.f);
    const uint16_t* row = keys + first;
    for (int d = 0; d < head_dim; ++d, row += kPageTokens) {
      if constexpr (kPrefetch == Prefetch::kYes) {
        for (int line = 0; line < T * L; line += 32, ahead += T * L < 32 ? T * L : 32) _mm_prefetch(ahead, _MM_HINT_T0);
      }
      typename V::F key[T];
      for (int j = 0; j < T; ++j) key[j] = V::LoadHalf(row + j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = V::Set(q[int64_t{i} * head_dim + d]);
        for (int j = 0; j < T; ++j) sums[i][j] = V::Fma(factor, key[j], sums[i][j]);
      }
    }
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) V::Store(scores[i] + first + j * L, sums[i][j]);
  }
}

// acc[i][d] = acc[i][d] * rescale[i] + sum over slots [begin, end) of weights[i][t] * value[t][d], for kVectors registers
// of dims; the last of them holds n_last dims.
template <typename V, int kQueries, int kVectors, Prefetch kPrefetch, bool kWhole>
void ValueTile(const float (*weights)[kPageTokens], const float* rescale, int begin, int end, const uint16_t* values,
               int head_dim, int n_last, const uint16_t* ahead, float* acc) {
  constexpr int L = V::kLanes;
  typename V::F sums[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    const auto factor = V::Set(rescale[i]);
    for (int j = 0; j < kVectors; ++j) {
      const float* from = acc + int64_t{i} * head_dim + j * L;
      sums[i][j] = V::Mul(kWhole ? V::Load(from) : V::Load(from, n_last), factor);
    }
  }
  const uint16_t* row = values + int64_t{begin} * head_dim;
  for (int t = begin; t < end; ++t, row += head_dim) {
    if constexpr (kPrefetch == Prefetch::kYes) {
      for (int line = 0; line < kVectors * L; line += 32, ahead += kVectors * L < 32 ? kVectors * L : 32)
        _mm_prefetch(ahead, _MM_HINT_T0);
    }
    typename V::F value[kVectors];
    for (int j = 0; j < kVectors; ++j) value[j] = kWhole ? V::LoadHalf(row + j * L) : V::LoadHalf(row + j * L, n_last);
    for (int i = 0; i < kQueries; ++i) {
      const auto factor = V::Set(weights[i][t]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::Fma(factor, value[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < kVectors; ++j) {
      float* to = acc + int64_t{i} * head_dim + j * L;
      if constexpr (kWhole) {
        V::Store(to, sums[i][j]);
      } else {
        V::Store(to, sums[i][j], n_last);
      }
    }
}

template <typename V, int kQueries, Prefetch kPrefetch>
void Values(const float (*weights)[kPageTokens], const float* rescale, int begin, int end, const uint16_t* values,
            int head_dim, const uint16_t* ahead, float* acc) {
  constexpr int L = V::kLanes, T = V::kTileVectors;
  int d = 0;
  for (; d + T * L <= head_dim; d += T * L, ahead += kPrefetch == Prefetch::kYes ? kPageTokens * T * L : 0)
    ValueTile<V, kQueries, T, kPrefetch, true>(weights, rescale, begin, end, values + d, head_dim, L, ahead, acc + d);
  for (; d + L <= head_dim; d += L)
    ValueTile<V, kQueries, 1, Prefetch::kNo, true>(weights, rescale, begin, end, values + d, head_dim, L, nullptr,
                                                   acc + d);
  if (d < head_dim)
    ValueTile<V, kQueries, 1, Prefetch::kNo, false>(weights, rescale, begin, end, values + d, head_dim, head_dim - d,
                                                    nullptr, acc + d);
}

// Scores of one query to weights; updates its running maximum and sum.
template <typename V>
void Softmax(PageState& page, int i, float* max, float* sum) {
  constexpr int L = V::kLanes;
  const int begin = page.begin[i], end = page.end[i];
  if (begin == end) {
    page.rescale[i] = 1;
    return;
  }
  const uint64_t visible = (~uint64_t{0} >> (kPageTokens - (end - begin))) << begin;
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
  page.rescale[i] = *max == -kInfinity ? 0.f : ExpOf<V>(*max - new_max);
  *sum = *sum * page.rescale[i] + V::ReduceAdd(total);
  *max = new_max;
}

// Weighted values of kQueries queries. Where they see different slots, the common ones go through the tile and the rest
// query by query, in order: a hidden slot may hold anything, and 0 * NaN is not 0.
template <typename V, int kQueries, Prefetch kPrefetch>
void ValuesOfVisible(PageState& page, int first, const uint16_t* values, int head_dim, const uint16_t* ahead,
                     float* acc) {
  int begin = 0, end = kPageTokens;
  for (int i = first; i < first + kQueries; ++i) {
    begin = static_cast<int>(Most(begin, page.begin[i]));
    end = static_cast<int>(Least(end, page.end[i]));
  }
  const auto alone = [&](int i, int from, int to) {
    if (from >= to) return;
    Values<V, 1, Prefetch::kNo>(page.weights + i, page.rescale + i, from, to, values, head_dim, nullptr,
                                acc + int64_t{i} * head_dim);
    page.rescale[i] = 1;
  };
  if (begin >= end) {
    for (int i = first; i < first + kQueries; ++i) alone(i, page.begin[i], page.end[i]);
    return;
  }
  for (int i = first; i < first + kQueries; ++i) alone(i, page.begin[i], begin);
  Values<V, kQueries, kPrefetch>(page.weights + first, page.rescale + first, begin, end, values, head_dim, ahead,
                                 acc + int64_t{first} * head_dim);
  for (int i = first; i < first + kQueries; ++i) {
    page.rescale[i] = 1;
    alone(i, end, page.end[i]);
  }
}

// Calls tile.template operator()<height, prefetch>(first) for the queries in tiles as even as possible; the first one
// prefetches.
template <typename V, int kHeight, typename Tile>
void OfHeight(int height, int first, const Tile& tile) {
  if (height == kHeight) {
    if (first == 0) {
      tile.template operator()<kHeight, Prefetch::kYes>(first);
    } else {
      tile.template operator()<kHeight, Prefetch::kNo>(first);
    }
  } else if constexpr (kHeight > 1) {
    OfHeight<V, kHeight - 1>(height, first, tile);
  }
}
template <typename V, typename Tile>
void ForTiles(int n_queries, const Tile& tile) {
  for (int first = 0; first < n_queries;) {
    const int rest = n_queries - first, n_tiles = (rest + V::kTileQueries - 1) / V::kTileQueries;
    const int height = (rest + n_tiles - 1) / n_tiles;
    OfHeight<V, V::kTileQueries>(height, first, tile);
    first += height;
  }
}

template <typename V>
void Attention(const AttentionSplit& args) {
  const int n_queries = args.n_queries, head_dim = args.head_dim;
  for (int i = 0; i < n_queries; ++i) args.max[i] = -kInfinity, args.sum[i] = 0;
  for (int64_t i = 0; i < int64_t{n_queries} * head_dim; ++i) args.acc[i] = 0;
  const int64_t half = int64_t{head_dim} * kPageTokens;   // elements of K, and of V
  PageState page;
  for (int p = 0; p < args.n_pages; ++p) {
    const int64_t token = args.first_token + int64_t{p} * kPageTokens;
    bool any = false;
    for (int i = 0; i < n_queries; ++i) {
      const int64_t position = args.position[i];
      const int64_t end = Most(0, Least(kPageTokens, position + 1 - token));
      const int64_t begin = args.window > 0 ? Most(0, Least(end, position - args.window + 1 - token)) : 0;
      page.begin[i] = static_cast<int>(begin), page.end[i] = static_cast<int>(end);
      any |= begin < end;
    }
    if (!any) continue;
    const uint16_t* keys = args.pages[p];
    const uint16_t* values = keys + half;
    const uint16_t* next = p + 1 < args.n_pages ? args.pages[p + 1] : values;
    ForTiles<V>(n_queries, [&]<int kQueries, Prefetch kPrefetch>(int first) {
      ScoreTile<V, kQueries, kPrefetch>(args.q + int64_t{first} * head_dim, head_dim, keys, values,
                                        page.weights + first);
    });
    for (int i = 0; i < n_queries; ++i) Softmax<V>(page, i, args.max + i, args.sum + i);
    ForTiles<V>(n_queries, [&]<int kQueries, Prefetch kPrefetch>(int first) {
      ValuesOfVisible<V, kQueries, kPrefetch>(page, first, values, head_dim, next, args.acc);
    });
  }
}

template <typename V>
void Merge(int n_queries, int head_dim, const float* max2, const float* sum2, const float* acc2, float* max, float* sum,
           float* acc) {
  constexpr int L = V::kLanes;
  for (int i = 0; i < n_queries; ++i, acc += head_dim, acc2 += head_dim) {
    if (max2[i] == -kInfinity) continue;
    const float larger = max2[i] > max[i] ? max2[i] : max[i];
    const float one = max[i] == -kInfinity ? 0.f : ExpOf<V>(max[i] - larger), two = ExpOf<V>(max2[i] - larger);
    sum[i] = sum[i] * one + sum2[i] * two;
    max[i] = larger;
    const auto factor = V::Set(one), factor2 = V::Set(two);
    int d = 0;
    for (; d + L <= head_dim; d += L)
      V::Store(acc + d, V::Fma(V::Load(acc2 + d), factor2, V::Mul(V::Load(acc + d), factor)));
    if (const int n = head_dim - d; n > 0)
      V::Store(acc + d, V::Fma(V::Load(acc2 + d, n), factor2, V::Mul(V::Load(acc + d, n), factor)), n);
  }
}

template <typename V>
constexpr VectorOps Table(Isa isa) {
  return {isa,         RmsNorm<V>, Rope<V>,      GatedAct<V>, thermocline::Add<V>,
          Quantize<V>, StoreKv<V>, Attention<V>, Merge<V>,    FloatGemv<V>};
}

}  // namespace
}  // namespace thermocline
