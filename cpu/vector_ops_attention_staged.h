// Attention of prompt rows over keys and values in F16 (models/kv_layout.h), in integers: a page is converted 64 dims
// at a time for all queries, each token with a scale of its own per 64 dims, whose largest number is 4095. That is
// little beside the 8 bits of the products in front and behind.
#pragma once

#include "cpu/vector_ops_attention_int.h"

namespace thermocline {
namespace {

struct StagedGroup {
  alignas(64) int16_t elements[kPageTokens * In13Bits::kGroup];  // keys (dim pairs, 64, 2), values (token pairs, 64, 2)
  alignas(64) float scales[kPageTokens];
  alignas(64) float inverse[kPageTokens];
};

// scales and inverse from the largest F16 of each token. Zeros and what is not a number make integers of 0: 0 times
// infinity is converted to the lowest integer, of whose low half every bit is 0.
template <typename V>
void SetScales(const uint16_t* largest, StagedGroup& group) {
  for (int t = 0; t < kPageTokens; t += V::kLanes) {
    const auto max = V::LoadHalf(largest + t);
    V::Store(group.scales + t, V::Mul(max, V::Set(1 / In13Bits::kMost)));
    V::Store(group.inverse + t, V::Div(V::Set(In13Bits::kMost), max));
  }
}

// keys: (n_dims, 64)
template <typename V>
void StageKeys(const uint16_t* keys, int n_dims, StagedGroup& group) {
  constexpr int L = V::kLanes;
  alignas(64) uint16_t largest[kPageTokens];
  for (int t = 0; t < kPageTokens; t += 2 * L) {
    auto max = V::AbsHalves(keys + t);
    for (int d = 1; d < n_dims; ++d) max = V::MaxHalves(max, V::AbsHalves(keys + d * kPageTokens + t));
    V::StoreHalves(largest + t, max);
  }
  SetScales<V>(largest, group);
  for (int t = 0; t < kPageTokens; t += L) {
    const auto inverse = V::Load(group.inverse + t);
    const auto convert = [&](int d) {
      return V::ToInt(V::Mul(d < n_dims ? V::LoadHalf(keys + d * kPageTokens + t) : V::Set(0.f), inverse));
    };
    int16_t* to = group.elements + 2 * t;
    for (int d = 0; d < n_dims; d += 2, to += 2 * kPageTokens) V::StorePairs(to, convert(d), convert(d + 1));
  }
}

// values: (64, n_dims), stride apart.
template <typename V>
void StageValues(const uint16_t* values, int64_t stride, int n_dims, StagedGroup& group) {
  constexpr int L = V::kLanes;
  alignas(64) uint16_t largest[kPageTokens];
  for (int t = 0; t < kPageTokens; ++t) {
    const uint16_t* row = values + t * stride;
    int d = 2 * L;
    auto max = n_dims < d ? V::AbsHalves(row, n_dims) : V::AbsHalves(row);
    for (; d < n_dims; d += 2 * L)
      max = V::MaxHalves(max, n_dims - d < 2 * L ? V::AbsHalves(row + d, n_dims - d) : V::AbsHalves(row + d));
    largest[t] = V::ReduceMaxHalves(max);
  }
  SetScales<V>(largest, group);
  int16_t* to = group.elements;
  for (int t = 0; t < kPageTokens; t += 2, to += 2 * In13Bits::kGroup) {
    const auto convert = [&](int token, int d) {
      const uint16_t* from = values + token * stride + d;
      const auto value = n_dims - d < L ? V::LoadHalf(from, n_dims - d) : V::LoadHalf(from);
      return V::ToInt(V::Mul(value, V::Set(group.inverse[token])));
    };
    for (int d = 0; d < n_dims; d += L) V::StorePairs(to + 2 * d, convert(t, d), convert(t + 1, d));
  }
}

// The scales of the visible tokens, 0 for the others. Returns 0, or no number if one of them is none.
template <typename V>
float VisibleScales(const float* scales, uint64_t visible, typename V::F* out) {
  auto sum = V::Set(0.f);
  for (int j = 0; j < kPageTokens / V::kLanes; ++j) {
    out[j] = V::Select(visible >> j * V::kLanes, V::Load(scales + j * V::kLanes), V::Set(0.f));
    sum = V::Add(sum, out[j]);
  }
  return 0 * V::ReduceAdd(sum);
}

// weight * scale of the tokens of one group, over the largest of them: a token with nearly all of the weight may have
// hardly any value, as the first one of a text often does. Neighbouring queries mostly see the same tokens.
template <typename V>
void QuantizeWeights(const PageState& page, int n_queries, const float* scales, IntWeights& weights) {
  constexpr int L = V::kLanes;
  constexpr float kSmallest = 0x1p-100f;  // from it on 1 / scale is finite
  typename V::F of_tokens[kPageTokens / L];
  float poison = 0;
  for (int i = 0; i < n_queries; ++i) {
    if (i == 0 || page.begin[i] != page.begin[i - 1] || page.end[i] != page.end[i - 1])
      poison = VisibleScales<V>(scales, page.Visible(i), of_tokens);
    typename V::F products[kPageTokens / L];
    auto largest = V::Set(0.f);
    for (int j = 0; j < kPageTokens / L; ++j) {
      products[j] = V::Mul(V::Load(page.weights[i] + j * L), of_tokens[j]);
      largest = V::Max(products[j], largest);
    }
    const float max = V::ReduceMax(largest);
    const bool zero = max < kSmallest;
    const auto inverse = V::Set(zero ? 0.f : In13Bits::kMostFactor / max);
    for (int j = 0; j < kPageTokens / L; ++j)
      V::StoreS16(weights.values[i] + j * L, V::ToInt(V::Mul(products[j], inverse)));
    weights.scales[i] = (zero ? 0.f : max / In13Bits::kMostFactor) + poison;
  }
}

// Calls part(g, group) after stage(dim, n_dims, group).
template <typename Stage, typename Part>
void ForStagedGroups(int head_dim, const Stage& stage, const Part& part) {
  StagedGroup group;
  for (int d = 0; d < head_dim; d += In13Bits::kGroup) {
    const int n_dims = static_cast<int>(Least(In13Bits::kGroup, head_dim - d));
    stage(d, n_dims, group);
    part(d, KvGroupOf<In13Bits>{group.scales, group.elements, In13Bits::kGroup, n_dims, nullptr});
  }
}

template <typename V>
void ScoresStaged(const AttentionSplit& args, const IntQueries& queries, const uint8_t* side, PageState& page) {
  const uint16_t* keys = reinterpret_cast<const uint16_t*>(side);
  const int64_t n_groups = (args.head_dim + In13Bits::kGroup - 1) / In13Bits::kGroup;
  const auto stage = [&](int d, int n_dims, StagedGroup& group) {
    StageKeys<V>(keys + d * kPageTokens, n_dims, group);
  };
  ForStagedGroups(args.head_dim, stage, [&](int d, const KvGroupOf<In13Bits>& group) {
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      const int64_t at = first * n_groups + d / In13Bits::kGroup;
      IntScoreTile<V, In13Bits, kVectors, kQueries>(group, queries.values + at * In13Bits::kGroup, queries.scales + at,
                                                    n_groups, d > 0, page.weights + first);
    });
  });
}

template <typename V>
void WeightedValuesStaged(const AttentionSplit& args, const uint8_t* side, const PageState& page) {
  const uint16_t* values = reinterpret_cast<const uint16_t*>(side);
  const PairRange pairs = SeenPairs(page, args.n_queries);
  IntWeights weights;
  const auto stage = [&](int d, int n_dims, StagedGroup& group) {
    StageValues<V>(values + d, args.head_dim, n_dims, group);
  };
  ForStagedGroups(args.head_dim, stage, [&](int d, const KvGroupOf<In13Bits>& group) {
    QuantizeWeights<V>(page, args.n_queries, group.scales, weights);
    WideTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      IntValueTiles<V, In13Bits, kVectors, kQueries>(group, args, pairs, page, weights, first, args.acc + d);
    });
  });
}

}  // namespace
}  // namespace thermocline
