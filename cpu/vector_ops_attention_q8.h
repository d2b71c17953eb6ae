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

// The scales of the visible tokens over the largest of them, which it returns, times kMostFactor; 0 for the others.
template <typename V>
float ScaleFactors(const uint16_t* scales, uint64_t visible, typename V::F* factors) {
  constexpr int L = V::kLanes;
  auto largest = V::Set(0.f);
  for (int j = 0; j < kPageTokens / L; ++j) {
    factors[j] = V::Select(visible >> j * L, V::LoadHalf(scales + j * L), V::Set(0.f));
    largest = V::Max(factors[j], largest);
  }
  const float max = V::ReduceMax(largest);
  const auto factor = V::Set(max == 0 ? 0.f : In8Bits::kMostFactor / max);
  for (int j = 0; j < kPageTokens / L; ++j) factors[j] = V::Mul(factors[j], factor);
  return max;
}

// The powers of two next above a query's largest weight of the page: once for all groups, though where the scales of
// tokens differ by much a step may be large beside the products.
struct Powers {
  alignas(64) float power[kMaxQueries], inverse[kMaxQueries];
};

template <typename V>
void SetPowers(const PageState& page, int n_queries, Powers& powers) {
  for (int i = 0; i < n_queries; i += V::kLanes) {
    const auto exponent = V::Round(V::Fma(V::Load(page.below + i), V::Set(1.44269504f), V::Set(0.5f)));
    const auto bounded = V::Max(V::Set(-100.f), exponent);
    V::Store(powers.power + i, V::ScaleByPower(V::Set(1.f), bounded));
    V::Store(powers.inverse + i, V::ScaleByPower(V::Set(1.f), V::Neg(bounded)));
  }
}

// weight * scale of the tokens of one group. Neighbouring queries mostly see the same tokens.
template <typename V>
void QuantizeWeightsQ8(const PageState& page, int n_queries, const Powers& powers, const uint16_t* scales,
                       IntWeights& weights) {
  constexpr int L = V::kLanes;
  typename V::F factors[kPageTokens / L];
  float largest = 0;
  for (int i = 0; i < n_queries; ++i) {
    if (i == 0 || page.begin[i] != page.begin[i - 1] || page.end[i] != page.end[i - 1])
      largest = ScaleFactors<V>(scales, page.Visible(i), factors);
    const auto to_one = V::Set(powers.inverse[i]);
    for (int j = 0; j < kPageTokens / L; ++j) {
      const auto weight = V::Mul(V::Load(page.weights[i] + j * L), to_one);
      V::StoreS16(weights.values[i] + j * L, V::ToInt(V::Mul(weight, factors[j])));
    }
    weights.scales[i] = powers.power[i] * largest / In8Bits::kMostFactor;
  }
}

template <typename V>
void WeightedValuesQ8(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, const PageState& page) {
  const PairRange pairs = SeenPairs(page, args.n_queries);
  IntWeights weights;
  Powers powers;
  SetPowers<V>(page, args.n_queries, powers);
  ForGroupsQ8(side, args.head_dim, 2 * kKvGroup, ahead, [&](int64_t g, const KvGroupOf<In8Bits>& values) {
    QuantizeWeightsQ8<V>(page, args.n_queries, powers, values.scales, weights);
    TallTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      IntValueTiles<V, In8Bits, kVectors, kQueries>(values, args, pairs, page, weights, first, args.acc + g * kKvGroup);
    });
  });
}

}  // namespace
}  // namespace thermocline
