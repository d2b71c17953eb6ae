// Attention over KV pages, over the vector type V of vector_ops_generic.h, and
//
//   V::kTileVectors   registers of K or V in a wide tile
//   V::kTileQueries   its queries, at most, so that kTileQueries * kTileVectors sums stay in registers
//
// One page at a time, all queries: scores (tokens across the lanes), softmax weights, weighted values (dims across the
// lanes); 64 dims at a time. One tile converts each register of keys or values once for all queries; it is tall, twice
// the queries and half the registers, where they are too many for a wide one. For still more queries the dims are
// converted beforehand for several wide tiles. What happens to one query is the same sequence of operations in a tile
// of any shape and from either source: scores sum over d ascending, values over tokens ascending.
#pragma once

#include "cpu/vector_ops_tiles.h"

namespace thermocline {
namespace {

// What one page does to each query.
struct PageState {
  alignas(64) float weights[kMaxQueries][kPageTokens];  // scores, then exp(score - max) in the visible slots
  float rescale[kMaxQueries];                           // what earlier pages' sums are multiplied by
  int begin[kMaxQueries], end[kMaxQueries];             // visible slots; begin == end: none
};

constexpr int kStagedDims = 64;
struct Staged {
  alignas(64) float scales[kStagedDims / kKvGroup * kPageTokens];
  alignas(64) float values[kStagedDims * kPageTokens];  // K as (dims, 64) or V as (64, dims)
};

// Scores of one query to weights; updates its running maximum and sum.
template <typename V>
void Softmax(PageState& page, int i, float* max, float* sum) {
  constexpr int L = V::kLanes;
  const int begin = page.begin[i], end = page.end[i];
  page.rescale[i] = 1;
  if (begin == end) return;
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
  // Most pages leave the maximum as it was; e^0 is exactly 1.
  if (new_max != *max) page.rescale[i] = *max == -kInfinity ? 0.f : ExpOf<V>(*max - new_max);
  *sum = *sum * page.rescale[i] + V::ReduceAdd(total);
  *max = new_max;
}

// Weighted values of queries [first, first + kQueries). Where they see different slots, the common ones go through the
// tile and the rest query by query, in order: a hidden slot may hold anything, and 0 * NaN is not 0.
template <typename V, int kVectors, int kQueries, typename Values>
void ValuesOfVisible(const PageState& page, int first, ValueSpan<Values> span, const uint8_t* ahead) {
  int begin = 0, end = kPageTokens;
  float rescale[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    begin = static_cast<int>(Most(begin, page.begin[first + i]));
    end = static_cast<int>(Least(end, page.end[first + i]));
    rescale[i] = page.rescale[first + i];
  }
  span.acc += first * span.acc_stride;
  const auto alone = [&](int i, int from, int to) {
    if (from >= to) return;
    ValueSpan<Values> mine = span;
    mine.acc += i * span.acc_stride;
    ValueTiles<V, kVectors, Values, 1>(mine, page.weights + first + i, rescale + i, from, to, nullptr);
    rescale[i] = 1;
  };
  if (begin >= end) {
    for (int i = 0; i < kQueries; ++i) alone(i, page.begin[first + i], page.end[first + i]);
    return;
  }
  for (int i = 0; i < kQueries; ++i) alone(i, page.begin[first + i], begin);
  ValueTiles<V, kVectors, Values, kQueries>(span, page.weights + first, rescale, begin, end, ahead);
  for (int i = 0; i < kQueries; ++i) {
    rescale[i] = 1;
    alone(i, end, page.end[first + i]);
  }
}

// Calls tile.operator()<kVectors, height>(first) for a height of kLeast to kMost.
template <int kVectors, int kLeast, int kMost, typename Tile>
void OfHeight(int height, int first, const Tile& tile) {
  if (height == kMost) {
    tile.template operator()<kVectors, kMost>(first);
  } else if constexpr (kMost > kLeast) {
    OfHeight<kVectors, kLeast, kMost - 1>(height, first, tile);
  }
}
template <typename V>
constexpr int kMostInOneTile = 2 * V::kTileQueries;
// All queries in one tile.
template <typename V, typename Tile>
void OneTile(int n_queries, const Tile& tile) {
  if (n_queries <= V::kTileQueries) {
    OfHeight<V::kTileVectors, 1, V::kTileQueries>(n_queries, 0, tile);
  } else {
    OfHeight<V::kTileVectors / 2, V::kTileQueries + 1, kMostInOneTile<V>>(n_queries, 0, tile);
  }
}
// In wide tiles, as even as possible.
template <typename V, typename Tile>
void WideTiles(int n_queries, const Tile& tile) {
  for (int first = 0; first < n_queries;) {
    const int rest = n_queries - first, n_tiles = (rest + V::kTileQueries - 1) / V::kTileQueries;
    const int height = (rest + n_tiles - 1) / n_tiles;
    OfHeight<V::kTileVectors, 1, V::kTileQueries>(height, first, tile);
    first += height;
  }
}

// Dims [d, d + n) of the keys or values that begin at `bytes`.
template <typename V, typename Values>
Side<Values> DimsOf(const uint8_t* bytes, bool keys, int head_dim, int d, int n, Staged& staged) {
  if constexpr (kScaled<Values>) {
    const uint16_t* scales = reinterpret_cast<const uint16_t*>(bytes) + d / kKvGroup * kPageTokens;
    for (int i = 0; i < KvGroups(n) * kPageTokens; i += V::kLanes) V::Store(staged.scales + i, V::LoadHalf(scales + i));
    bytes += 2 * KvGroups(head_dim) * kPageTokens;
  }
  const auto* elements = reinterpret_cast<const typename Values::Element*>(bytes);
  if (keys) return {elements + int64_t{d} * kPageTokens, kPageTokens, staged.scales};
  return {elements + d, head_dim, staged.scales};
}

template <typename V, typename Values>
Side<F32Values> StageKeys(const Side<Values>& keys, int n_dims, Staged& staged) {
  for (int d = 0; d < n_dims; ++d)
    for (int t = 0; t < kPageTokens; t += V::kLanes)
      V::Store(staged.values + d * kPageTokens + t, KeysAt<V>(keys, d, t));
  return {staged.values, kPageTokens, nullptr};
}
template <typename V, typename Values>
Side<F32Values> StageValues(const Side<Values>& values, int n_dims, Staged& staged) {
  constexpr int L = V::kLanes;
  for (int t = 0; t < kPageTokens; ++t) {
    float* to = staged.values + t * kStagedDims;
    int d = 0;
    for (; d + L <= n_dims; d += L) V::Store(to + d, ValuesAt<V>(values, t, d));
    if (d < n_dims) V::Store(to + d, ValuesAt<V>(values, t, d, n_dims - d));  // whole: the stage has room for it
  }
  return {staged.values, kStagedDims, nullptr};
}

// Calls part(first dim, how many, what to prefetch meanwhile): `ahead` is as large as what is read.
template <typename Values, typename Part>
void ForDims(int head_dim, const uint8_t* ahead, const Part& part) {
  for (int d = 0; d < head_dim; d += kStagedDims) {
    const int n = static_cast<int>(Least(kStagedDims, head_dim - d));
    if constexpr (kScaled<Values>) PrefetchNext<kStagedDims / kKvGroup * kPageTokens * 2>(ahead);
    part(d, n, ahead);
    if (ahead != nullptr) ahead += n * kPageTokens * sizeof(typename Values::Element);
  }
}

template <typename V, typename Values>
void Scores(const AttentionSplit& args, const uint8_t* bytes, const uint8_t* ahead, Staged& staged, PageState& page) {
  const int64_t head_dim = args.head_dim;
  ForDims<Values>(args.head_dim, ahead, [&](int d, int n, const uint8_t* ahead_here) {
    const Side<Values> keys = DimsOf<V, Values>(bytes, true, args.head_dim, d, n, staged);
    if (args.n_queries <= kMostInOneTile<V>) {
      OneTile<V>(args.n_queries, [&]<int kVectors, int kQueries>(int) {
        ScoreTile<V, kVectors, Values, kQueries>(args.q + d, head_dim, n, d > 0, keys, ahead_here, page.weights);
      });
      return;
    }
    const Side<F32Values> floats = StageKeys<V>(keys, n, staged);
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      ScoreTile<V, kVectors, F32Values, kQueries>(args.q + first * head_dim + d, head_dim, n, d > 0, floats, nullptr,
                                                  page.weights + first);
    });
  });
}

template <typename V, typename Values>
void WeightedValues(const AttentionSplit& args, const uint8_t* bytes, const uint8_t* ahead, Staged& staged,
                    const PageState& page) {
  const int64_t head_dim = args.head_dim;
  ForDims<Values>(args.head_dim, ahead, [&](int d, int n, const uint8_t* ahead_here) {
    const Side<Values> values = DimsOf<V, Values>(bytes, false, args.head_dim, d, n, staged);
    if (args.n_queries <= kMostInOneTile<V>) {
      const ValueSpan<Values> span{values, n, args.acc + d, head_dim};
      OneTile<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
        ValuesOfVisible<V, kVectors, kQueries>(page, first, span, ahead_here);
      });
      return;
    }
    const ValueSpan<F32Values> span{StageValues<V>(values, n, staged), n, args.acc + d, head_dim};
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      ValuesOfVisible<V, kVectors, kQueries>(page, first, span, nullptr);
    });
  });
}

// Calls op.operator()<Values>() for how the type stands in memory.
template <typename Op>
void WithValues(DType type, const Op& op) {
  if (type == DType::kQ8_0)
    op.template operator()<S8Values>();
  else
    op.template operator()<F16Values>();
}

template <typename V>
void Attention(const AttentionSplit& args) {
  const int n_queries = args.n_queries;
  for (int i = 0; i < n_queries; ++i) args.max[i] = -kInfinity, args.sum[i] = 0;
  for (int64_t i = 0; i < int64_t{n_queries} * args.head_dim; ++i) args.acc[i] = 0;
  PageState page;
  Staged staged;
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
    const uint8_t* keys = args.pages[p];
    const uint8_t* values = keys + KvSideBytes(args.types.key, args.head_dim);
    const uint8_t* next = p + 1 < args.n_pages ? args.pages[p + 1] : args.next;
    WithValues(args.types.key, [&]<typename Values>() { Scores<V, Values>(args, keys, values, staged, page); });
    for (int i = 0; i < n_queries; ++i) Softmax<V>(page, i, args.max + i, args.sum + i);
    WithValues(args.types.value,
               [&]<typename Values>() { WeightedValues<V, Values>(args, values, next, staged, page); });
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

}  // namespace
}  // namespace thermocline
