// Attention over keys and values in F16 (models/kv_layout.h), in floats.
//
// One tile converts each register of F16 once for all queries; it is tall where they are too many for a wide one. For
// still more queries, 64 dims at a time are converted beforehand for several wide tiles. What happens to one query is
// the same sequence of operations in a tile of any shape and from either source: scores sum over d ascending, values
// over tokens ascending.
#pragma once

#include "cpu/vector_ops_tiles.h"

namespace thermocline {
namespace {

constexpr int kStagedDims = 64;
struct Staged {
  alignas(64) float values[kStagedDims * kPageTokens];  // K as (dims, 64) or V as (64, dims)
};

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

// (rows, n) F16, stride elements apart, to floats, kStride apart.
template <typename V, int kStride>
void Stage(const uint16_t* from, int64_t stride, int rows, int n, float* to) {
  constexpr int L = V::kLanes;
  for (int row = 0; row < rows; ++row, from += stride, to += kStride) {
    int i = 0;
    for (; i + L <= n; i += L) V::Store(to + i, V::LoadHalf(from + i));
    if (i < n) V::Store(to + i, V::LoadHalf(from + i, n - i));  // whole: the stage has room for it
  }
}

template <typename V>
void ScoresF16(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, Staged& stage, PageState& page) {
  const uint16_t* keys = reinterpret_cast<const uint16_t*>(side);
  const int64_t head_dim = args.head_dim;
  if (args.n_queries <= kMostInOneTile<V>) {
    OneTile<V>(args.n_queries, [&]<int kVectors, int kQueries>(int) {
      ScoreTile<V, kVectors, F16Values, kQueries>(args.q, head_dim, args.head_dim, false, keys, ahead, page.weights);
    });
    return;
  }
  for (int d = 0; d < args.head_dim; d += kStagedDims) {
    const int n = static_cast<int>(Least(kStagedDims, args.head_dim - d));
    Stage<V, kPageTokens>(keys + d * kPageTokens, kPageTokens, n, kPageTokens, stage.values);
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      ScoreTile<V, kVectors, F32Values, kQueries>(args.q + first * head_dim + d, head_dim, n, d > 0, stage.values,
                                                  nullptr, page.weights + first);
    });
  }
}

template <typename V>
void WeightedValuesF16(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, Staged& stage,
                       const PageState& page) {
  const uint16_t* values = reinterpret_cast<const uint16_t*>(side);
  const int64_t head_dim = args.head_dim;
  if (args.n_queries <= kMostInOneTile<V>) {
    const ValueSpan<F16Values> span{values, head_dim, args.head_dim, args.acc, head_dim};
    OneTile<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      ValuesOfVisible<V, kVectors, kQueries>(page, first, span, ahead);
    });
    return;
  }
  for (int d = 0; d < args.head_dim; d += kStagedDims) {
    const int n = static_cast<int>(Least(kStagedDims, args.head_dim - d));
    Stage<V, kStagedDims>(values + d, head_dim, kPageTokens, n, stage.values);
    const ValueSpan<F32Values> span{stage.values, kStagedDims, n, args.acc + d, head_dim};
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      ValuesOfVisible<V, kVectors, kQueries>(page, first, span, nullptr);
    });
  }
}

}  // namespace
}  // namespace thermocline
