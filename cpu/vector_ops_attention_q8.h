// Attention over keys and values in Q8_0 (models/kv_layout.h), in integers, as twice as many of them are multiplied at
// once as of floats: queries, and the weights of the values, have 16 bits, which costs less than keys and values lose
// at 8.
//
//   score(t)   =  sum over groups g of  scale_q[g] * scale_k[g][t] * dot(q16, k8)      q = scale_q * q16, per split
//   value(d)  +=  scale_w * dot(w16, v8)             weight(t) * scale_v[g][t] = scale_w * w16, per page and group g
//
// A dot over 32 dims, or 64 tokens, stays within 2^29. Tokens that a query does not see have weight 0, and s8 is never
// NaN.
#pragma once

#include "cpu/vector_ops_attention_page.h"
#include "cpu/vector_ops_quantize.h"
#include "models/limits.h"

namespace thermocline {
namespace {

struct QueriesQ16 {
  alignas(64) int16_t values[kMaxQueries * kMaxHeadDim];  // (n_queries, groups * 32), zeros behind head_dim
  float scales[kMaxQueries * kMaxHeadDim / kKvGroup];     // (n_queries, groups)
};

struct WeightsQ16 {
  alignas(64) int16_t values[kMaxQueries][kPageTokens];
  float scales[kMaxQueries];
  alignas(64) float power[kMaxQueries], inverse_power[kMaxQueries];
};

constexpr float kMost16 = 32767;

template <typename V>
void QuantizeQueries(const AttentionSplit& args, QueriesQ16& queries) {
  constexpr float kLargest = 0x1p120f, kSmallest = 0x1p-100f;  // within them 1 / scale is finite
  int16_t* out = queries.values;
  float* scale = queries.scales;
  for (int64_t i = 0; i < args.n_queries; ++i)
    for (int d = 0; d < args.head_dim; d += kKvGroup, out += kKvGroup) {
      typename V::F values[kKvGroup / V::kLanes];
      LoadGroup<V>(args.q + i * args.head_dim + d, static_cast<int>(Least(kKvGroup, args.head_dim - d)), kLargest,
                   values);
      auto largest = V::Set(0.f);
      for (const auto value : values) largest = V::Max(largest, V::Abs(value));
      const float max = V::ReduceMax(largest);
      const bool zero = max < kSmallest;
      const auto inverse = V::Set(zero ? 0.f : kMost16 / max);
      for (int j = 0; j < kKvGroup / V::kLanes; ++j)
        V::StoreS16(out + j * V::kLanes, V::ToInt(V::Mul(values[j], inverse)));
      *scale++ = zero ? 0.f : max / kMost16;
    }
}

// Two neighbours in every lane.
template <typename V>
typename V::I Pair(const int16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return V::SetInt(pair);
}

// One group of dims of a page's keys or values.
struct GroupQ8 {
  const uint16_t* scales;  // (64)
  const int8_t* bytes;     // from the group's first dim on: keys (dim pairs, 64, 2), values (token pairs, head_dim, 2)
  int n_dims;
  const uint8_t* ahead;  // what to prefetch meanwhile, as large
};

// Calls part(g, group).
template <typename Part>
void ForGroups(const uint8_t* side, int head_dim, int64_t stride_bytes, const uint8_t* ahead, const Part& part) {
  const int64_t n_groups = KvGroups(head_dim);
  const uint16_t* scales = reinterpret_cast<const uint16_t*>(side);
  const int8_t* bytes = reinterpret_cast<const int8_t*>(scales + n_groups * kPageTokens);
  for (int64_t g = 0; g < n_groups; ++g) {
    PrefetchNext<kPageTokens * 2>(ahead);
    const int n_dims = static_cast<int>(Least(kKvGroup, head_dim - g * kKvGroup));
    part(g, GroupQ8{scales + g * kPageTokens, bytes + g * stride_bytes, n_dims, ahead});
    if (ahead != nullptr) ahead += kKvGroup * kPageTokens;
  }
}

// scores (+)= of kQueries queries against all tokens, over one group.
template <typename V, int kVectors, int kQueries>
void ScoreTileQ8(const GroupQ8& keys, const int16_t* q, const float* q_scales, int64_t n_groups, bool accumulate,
                 float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = kVectors;
  const uint8_t* ahead = keys.ahead;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::I sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = V::ZeroInt();
    const int8_t* row = keys.bytes + 2 * first;
    for (int d = 0; d < keys.n_dims; d += 2, row += 2 * kPageTokens) {
      PrefetchNext<2 * T * L>(ahead);
      typename V::I key[T];
      for (int j = 0; j < T; ++j) key[j] = V::LoadPairs(row + 2 * j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = Pair<V>(q + i * n_groups * kKvGroup + d);
        for (int j = 0; j < T; ++j) sums[i][j] = V::DotPairs(sums[i][j], factor, key[j]);
      }
    }
    for (int j = 0; j < T; ++j) {
      const auto scale = V::LoadHalf(keys.scales + first + j * L);
      for (int i = 0; i < kQueries; ++i) {
        float* to = scores[i] + first + j * L;
        const auto before = accumulate ? V::Load(to) : V::Set(0.f);
        V::Store(to, V::Fma(V::ToFloat(sums[i][j]), V::Mul(scale, V::Set(q_scales[i * n_groups])), before));
      }
    }
  }
}

template <typename V>
void ScoresQ8(const AttentionSplit& args, const QueriesQ16& queries, const uint8_t* side, const uint8_t* ahead,
              PageState& page) {
  const int64_t n_groups = KvGroups(args.head_dim);
  ForGroups(side, args.head_dim, kKvGroup * kPageTokens, ahead, [&](int64_t g, const GroupQ8& keys) {
    TallTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      const int64_t at = first * n_groups + g;
      ScoreTileQ8<V, kVectors, kQueries>(keys, queries.values + at * kKvGroup, queries.scales + at, n_groups, g > 0,
                                         page.weights + first);
    });
  });
}

// The scales of the visible tokens over the largest of them, which it returns, times 32767; 0 for the others.
template <typename V>
float ScaleFactors(const uint16_t* scales, uint64_t visible, typename V::F* factors) {
  constexpr int L = V::kLanes;
  auto largest = V::Set(0.f);
  for (int j = 0; j < kPageTokens / L; ++j) {
    factors[j] = V::Select(visible >> j * L, V::LoadHalf(scales + j * L), V::Set(0.f));
    largest = V::Max(factors[j], largest);
  }
  const float max = V::ReduceMax(largest);
  const auto factor = V::Set(max == 0 ? 0.f : kMost16 / max);
  for (int j = 0; j < kPageTokens / L; ++j) factors[j] = V::Mul(factors[j], factor);
  return max;
}

// The powers of two next above a query's largest weight of the page.
template <typename V>
void SetPowers(const PageState& page, int n_queries, WeightsQ16& weights) {
  for (int i = 0; i < n_queries; i += V::kLanes) {
    const auto exponent = V::Round(V::Fma(V::Load(page.below + i), V::Set(1.44269504f), V::Set(0.5f)));
    const auto bounded = V::Max(V::Set(-100.f), exponent);
    V::Store(weights.power + i, V::ScaleByPower(V::Set(1.f), bounded));
    V::Store(weights.inverse_power + i, V::ScaleByPower(V::Set(1.f), V::Neg(bounded)));
  }
}

// weight * scale of the tokens of one group. Neighbouring queries mostly see the same tokens.
template <typename V>
void QuantizeWeights(const PageState& page, int n_queries, const uint16_t* scales, WeightsQ16& weights) {
  constexpr int L = V::kLanes;
  typename V::F factors[kPageTokens / L];
  float largest = 0;
  for (int i = 0; i < n_queries; ++i) {
    if (i == 0 || page.begin[i] != page.begin[i - 1] || page.end[i] != page.end[i - 1])
      largest = ScaleFactors<V>(scales, page.Visible(i), factors);
    const auto to_one = V::Set(weights.inverse_power[i]);
    for (int j = 0; j < kPageTokens / L; ++j) {
      const auto weight = V::Mul(V::Load(page.weights[i] + j * L), to_one);
      V::StoreS16(weights.values[i] + j * L, V::ToInt(V::Mul(weight, factors[j])));
    }
    weights.scales[i] = weights.power[i] * largest / kMost16;
  }
}

// acc[i][d] = acc[i][d] * rescale[i] + weighted values, for kVectors registers of dims from `dim` on; where there is
// but a part of a register, n_last is how much. Token pairs outside [begin, end) have no weight.
template <typename V, int kVectors, int kQueries, bool kWhole>
void ValueTileQ8(const GroupQ8& values, int64_t head_dim, int dim, int n_last, int begin, int end,
                 const int16_t (*weights)[kPageTokens], const float* scales, const float* rescale, const uint8_t* ahead,
                 float* acc) {
  constexpr int L = V::kLanes, T = kVectors;
  typename V::I sums[kQueries][T];
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < T; ++j) sums[i][j] = V::ZeroInt();
  const int8_t* row = values.bytes + 2 * (begin * head_dim + dim);
  for (int p = begin; p < end; ++p, row += 2 * head_dim) {
    PrefetchNext<2 * T * L>(ahead);
    typename V::I value[T];
    for (int j = 0; j < T; ++j)
      value[j] = kWhole ? V::LoadPairs(row + 2 * j * L) : V::LoadPairs(row + 2 * j * L, n_last);
    for (int i = 0; i < kQueries; ++i) {
      const auto factor = Pair<V>(weights[i] + 2 * p);
      for (int j = 0; j < T; ++j) sums[i][j] = V::DotPairs(sums[i][j], factor, value[j]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < T; ++j) {
      float* to = acc + i * head_dim + dim + j * L;
      const auto sum = V::Mul(V::ToFloat(sums[i][j]), V::Set(scales[i])), factor = V::Set(rescale[i]);
      if constexpr (kWhole) {
        V::Store(to, V::Fma(V::Load(to), factor, sum));
      } else {
        V::Store(to, V::Fma(V::Load(to, n_last), factor, sum), n_last);
      }
    }
}

template <typename V>
void WeightedValuesQ8(const AttentionSplit& args, const uint8_t* side, const uint8_t* ahead, const PageState& page) {
  constexpr int L = V::kLanes;
  int64_t begin = kPageTokens, end = 0;
  for (int i = 0; i < args.n_queries; ++i)
    if (page.begin[i] < page.end[i]) begin = Least(begin, page.begin[i]), end = Most(end, page.end[i]);
  const int first_pair = static_cast<int>(begin / 2), end_pair = static_cast<int>((end + 1) / 2);
  WeightsQ16 weights;
  SetPowers<V>(page, args.n_queries, weights);
  ForGroups(side, args.head_dim, 2 * kKvGroup, ahead, [&](int64_t g, const GroupQ8& values) {
    QuantizeWeights<V>(page, args.n_queries, values.scales, weights);
    TallTiles<V>(args.n_queries, [&]<int kVectors, int kQueries>(int first) {
      constexpr int T = kVectors;
      const auto tile = [&]<int kWidth, bool kWhole>(int dim, int n_last, const uint8_t* ahead_here) {
        ValueTileQ8<V, kWidth, kQueries, kWhole>(values, args.head_dim, dim, n_last, first_pair, end_pair,
                                                 weights.values + first, weights.scales + first, page.rescale + first,
                                                 ahead_here, args.acc + first * int64_t{args.head_dim} + g * kKvGroup);
      };
      int d = 0;
      const uint8_t* ahead_here = first == 0 ? values.ahead : nullptr;
      for (; d + T * L <= values.n_dims; d += T * L) {
        tile.template operator()<T, true>(d, L, ahead_here);
        if (ahead_here != nullptr) ahead_here += T * L * kPageTokens;
      }
      for (; d + L <= values.n_dims; d += L) tile.template operator()<1, true>(d, L, nullptr);
      if (d < values.n_dims) tile.template operator()<1, false>(d, values.n_dims - d, nullptr);
    });
  });
}

}  // namespace
}  // namespace thermocline
