// Attention over keys and values in Q8_0 (models/kv_layout.h): 16-bit queries and weights cost less than keys and
// values lose at 8 bits.
#pragma once

#include "cpu/vector_ops_attention_int.h"

namespace thermocline {
namespace {

// Calls part(g, group) for the groups of a page's keys or values, stride_elements apart.
template <typename Part>
void ForGroupsQ8(const uint8_t* side, int head_dim, int64_t stride_elements, const uint8_t* ahead, const Part& part) {
  const int64_t n_groups = KvGroups(head_dim);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(side);
  const int8_t* bytes = reinterpret_cast<const int8_t*>(scales + n_groups * kPageTokens);
  for (int64_t g = 0; g < n_groups; ++g) {
    PrefetchNext<kPageTokens * 2>(ahead);
    const int n_dims = static_cast<int>(Least(kKvGroup, head_dim - g * kKvGroup));
    part(g, KvGroupOf<In8Bits>{scales + g * kPageTokens, bytes + g * stride_elements, head_dim, n_dims, ahead});
    if (ahead != nullptr) ahead += kKvGroup * kPageTokens;
  }
}

template <typename V>
void ScoresQ8(const AttentionSplit& args, const IntQueries& queries, const uint8_t* side, const uint8_t* ahead,
              PageState& page) {
  const int64_t n_groups = KvGroups(args.head_dim);
  ForGroupsQ8(side, args.head_dim, kKvGroup * kPageTokens, ahead, [&](int64_t g, const KvGroupOf<In8Bits>& keys) {
    TallTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      const int64_t at = first * n_groups + g;
      IntScoreTile<V, In8Bits, kVectors, kQueries>(keys, queries.values + at * kKvGroup, queries.scales + at, n_groups,
                                                   g > 0, page.weights + first);
    });
  });
}

template <typename V>
void WeightedValuesQ8(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, const PageState& page) {
  const PairRange pairs = SeenPairs(page, args.n_queries);
  IntWeights weights;
  SetPowers<V>(page, args.n_queries, weights);
  ForGroupsQ8(side, args.head_dim, 2 * kKvGroup, ahead, [&](int64_t g, const KvGroupOf<In8Bits>& values) {
    QuantizeWeights<V, In8Bits>(page, args.n_queries, values.scales, weights);
    TallTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      IntValueTiles<V, In8Bits, kVectors, kQueries>(values, args, pairs, page, weights, first, args.acc + g * kKvGroup);
    });
  });
}

}  // namespace
}  // namespace thermocline
