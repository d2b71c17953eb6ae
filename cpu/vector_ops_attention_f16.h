// Attention over keys and values in F16 (models/kv_layout.h), in floats.
//
// A tile converts each register of F16 once for all its queries; it is tall where they are too many for a wide one.
// What happens to one query is the same sequence of operations in a tile of any shape: scores sum over d ascending,
// values over tokens ascending.
#pragma once

#include "cpu/vector_ops_tiles.h"

namespace thermocline {
namespace {

// Where keys and values are converted as they are loaded: wide if one tile has room for all queries.
template <typename V, typename Tile>
void TilesOverHalves(int n_queries, const Tile& tile) {
  if (n_queries <= V::kTileQueries)
    WideTiles<V>(n_queries, tile);
  else
    TallTiles<V>(n_queries, tile);
}

// Weighted values of queries [first, first + kQueries). Where they see different slots, the common ones go through the
// tile and the rest query by query, in order: a hidden slot may hold anything, and 0 * NaN is not 0.
template <typename V, int kVectors, int kQueries>
void ValuesOfVisible(const PageState& page, int first, ValueSpan span, const uint8_t* ahead) {
  int begin = 0, end = kPageTokens;
  float rescale[kQueries];
  for (int i = 0; i < kQueries; ++i) {
    begin = static_cast<int>(Most(begin, page.begin[first + i]));
    end = static_cast<int>(Least(end, page.end[first + i]));
    rescale[i] = page.rescale[first + i];
  }
  span.acc += first * span.head_dim;
  const auto alone = [&](int i, int from, int to) {
    if (from >= to) return;
    ValueSpan mine = span;
    mine.acc += i * span.head_dim;
    ValueTiles<V, kVectors, 1>(mine, page.weights + first + i, rescale + i, from, to, nullptr);
    rescale[i] = 1;
  };
  if (begin >= end) {
    for (int i = 0; i < kQueries; ++i) alone(i, page.begin[first + i], page.end[first + i]);
    return;
  }
  for (int i = 0; i < kQueries; ++i) alone(i, page.begin[first + i], begin);
  ValueTiles<V, kVectors, kQueries>(span, page.weights + first, rescale, begin, end, ahead);
  for (int i = 0; i < kQueries; ++i) {
    rescale[i] = 1;
    alone(i, end, page.end[first + i]);
  }
}

template <typename V>
void ScoresF16(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, PageState& page) {
  const uint16_t* keys = reinterpret_cast<const uint16_t*>(side);
  const int64_t head_dim = args.head_dim;
  TilesOverHalves<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
    ScoreTile<V, kVectors, kQueries>(args.q + first * head_dim, head_dim, keys, first == 0 ? ahead : nullptr,
                                     page.weights + first);
  });
}

template <typename V>
void WeightedValuesF16(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, const PageState& page) {
  const uint16_t* values = reinterpret_cast<const uint16_t*>(side);
  TilesOverHalves<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
    ValuesOfVisible<V, kVectors, kQueries>(page, first, {values, args.head_dim, args.acc},
                                           first == 0 ? ahead : nullptr);
  });
}

}  // namespace
}  // namespace thermocline
