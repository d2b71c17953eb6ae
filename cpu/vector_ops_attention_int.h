// Attention in integers, as twice as many of them are multiplied at once as of floats: keys and values in 8 bits as
// they stand in a page (vector_ops_attention_q8.h) or in 13 bits made from F16 (vector_ops_attention_staged.h), queries
// and the weights of the values in up to 16.
//
//   score(t)   =  sum over groups g of  scale_q[g] * scale_k[g][t] * dot(q, k)        q = scale_q * integer, per split
//   value(d)  +=  scale_w * dot(w, v)              weight(t) * scale_v[g][t] = scale_w * integer, per page and group g
//
// A dot over the dims of a group, or 64 tokens, stays within 31 bits. Tokens that a query does not see have weight 0,
// and an integer is never NaN: where a key or a value is, its scale is.
#pragma once

#include "cpu/vector_ops_attention_page.h"
#include "cpu/vector_ops_quantize.h"
#include "models/limits.h"

namespace thermocline {
namespace {

// How wide a group is, and how large integers may be, of keys and values that stand as Elements with Scales.
struct In8Bits {
  using Element = int8_t;
  using Scale = uint16_t;  // F16
  static constexpr int kGroup = kKvGroup;
  static constexpr float kMostFactor = 32767;  // of queries and weights
};
struct In13Bits {
  using Element = int16_t;
  using Scale = float;
  static constexpr int kGroup = 64;
  static constexpr float kMost = 4095;
  static constexpr float kMostFactor = 8191;
};

struct IntQueries {
  alignas(64) int16_t values[kMaxQueries * kMaxHeadDim];  // (n_queries, groups * kGroup), zeros behind head_dim
  float scales[kMaxQueries * kMaxHeadDim / kKvGroup];     // (n_queries, groups)
};

struct IntWeights {
  alignas(64) int16_t values[kMaxQueries][kPageTokens];
  float scales[kMaxQueries];
};

template <typename V, typename In>
void QuantizeQueries(const AttentionSplit& args, IntQueries& queries) {
  constexpr float kLargest = 0x1p120f, kSmallest = 0x1p-100f;  // within them 1 / scale is finite
  constexpr int kRegisters = In::kGroup / V::kLanes, kLoaded = kActivationGroup / V::kLanes;
  int16_t* out = queries.values;
  float* scale = queries.scales;
  for (int64_t i = 0; i < args.n_queries; ++i)
    for (int d = 0; d < args.head_dim; d += In::kGroup, out += In::kGroup) {
      typename V::F values[kRegisters];
      for (int j = 0; j < kRegisters; j += kLoaded) {
        const int64_t first = d + j * V::kLanes, n = Most(0, Least(kActivationGroup, args.head_dim - first));
        LoadGroup<V>(args.q + i * args.head_dim + (n > 0 ? first : 0), static_cast<int>(n), kLargest, values + j);
      }
      auto largest = V::Set(0.f);
      for (const auto value : values) largest = V::Max(largest, V::Abs(value));
      const float max = V::ReduceMax(largest);
      const bool zero = max < kSmallest;
      const auto inverse = V::Set(zero ? 0.f : In::kMostFactor / max);
      for (int j = 0; j < kRegisters; ++j) V::StoreS16(out + j * V::kLanes, V::ToInt(V::Mul(values[j], inverse)));
      *scale++ = zero ? 0.f : max / In::kMostFactor;
    }
}

// Two neighbours in every lane.
template <typename V>
typename V::I Pair(const int16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof pair);
  return V::SetInt(pair);
}

template <typename V>
typename V::F LoadScales(const uint16_t* p) {
  return V::LoadHalf(p);
}
template <typename V>
typename V::F LoadScales(const float* p) {
  return V::Load(p);
}

// One group of dims of a page's keys or values.
template <typename In>
struct KvGroupOf {
  const typename In::Scale* scales;      // (64)
  const typename In::Element* elements;  // keys (dim pairs, 64, 2), values (token pairs, stride, 2)
  int64_t stride;                        // of values
  int n_dims;
  const uint8_t* ahead;  // what to prefetch meanwhile, as large as 8 bits are; may be null
};

// scores (+)= of kQueries queries against all tokens, over one group.
template <typename V, typename In, int kVectors, int kQueries>
void IntScoreTile(const KvGroupOf<In>& keys, const int16_t* q, const float* q_scales, int64_t n_groups, bool accumulate,
                  float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = kVectors;
  const uint8_t* ahead = keys.ahead;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::I sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = V::ZeroInt();
    const auto* row = keys.elements + 2 * first;
    for (int d = 0; d < keys.n_dims; d += 2, row += 2 * kPageTokens) {
      PrefetchNext<2 * T * L>(ahead);
      typename V::I key[T];
      for (int j = 0; j < T; ++j) key[j] = V::LoadPairs(row + 2 * j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = Pair<V>(q + i * n_groups * In::kGroup + d);
        for (int j = 0; j < T; ++j) sums[i][j] = V::DotPairs(sums[i][j], factor, key[j]);
      }
    }
    for (int j = 0; j < T; ++j) {
      const auto scale = LoadScales<V>(keys.scales + first + j * L);
      for (int i = 0; i < kQueries; ++i) {
        float* to = scores[i] + first + j * L;
        const auto before = accumulate ? V::Load(to) : V::Set(0.f);
        V::Store(to, V::Fma(V::ToFloat(sums[i][j]), V::Mul(scale, V::Set(q_scales[i * n_groups])), before));
      }
    }
  }
}

// acc[i][d] = acc[i][d] * rescale[i] + weighted values, for kVectors registers of dims from `dim` on; where there is
// but a part of a register, n_last is how much. Token pairs outside [begin, end) have no weight.
template <typename V, typename In, int kVectors, int kQueries, bool kWhole>
void IntValueTile(const KvGroupOf<In>& values, int64_t head_dim, int dim, int n_last, int begin, int end,
                  const int16_t (*weights)[kPageTokens], const float* scales, const float* rescale,
                  const uint8_t* ahead, float* acc) {
  constexpr int L = V::kLanes, T = kVectors;
  typename V::I sums[kQueries][T];
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < T; ++j) sums[i][j] = V::ZeroInt();
  const auto* row = values.elements + 2 * (begin * values.stride + dim);
  for (int p = begin; p < end; ++p, row += 2 * values.stride) {
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

// The token pairs that any query sees.
struct PairRange {
  int begin, end;
};
inline PairRange SeenPairs(const PageState& page, int n_queries) {
  int64_t begin = kPageTokens, end = 0;
  for (int i = 0; i < n_queries; ++i)
    if (page.begin[i] < page.end[i]) begin = Least(begin, page.begin[i]), end = Most(end, page.end[i]);
  return {static_cast<int>(begin / 2), static_cast<int>((end + 1) / 2)};
}

// acc of queries [first, first + kQueries) over one group of values, whose first dim is acc's.
template <typename V, typename In, int kVectors, int kQueries>
void IntValueTiles(const KvGroupOf<In>& values, const AttentionSplit& args, PairRange pairs, const PageState& page,
                   const IntWeights& weights, int first, float* acc) {
  constexpr int L = V::kLanes, T = kVectors;
  const auto tile = [&]<int kWidth, bool kWhole>(int dim, int n_last, const uint8_t* ahead) {
    IntValueTile<V, In, kWidth, kQueries, kWhole>(values, args.head_dim, dim, n_last, pairs.begin, pairs.end,
                                                  weights.values + first, weights.scales + first, page.rescale + first,
                                                  ahead, acc + first * int64_t{args.head_dim});
  };
  int d = 0;
  const uint8_t* ahead = first == 0 ? values.ahead : nullptr;
  for (; d + T * L <= values.n_dims; d += T * L) {
    tile.template operator()<T, true>(d, L, ahead);
    if (ahead != nullptr) ahead += T * L * kPageTokens;
  }
  for (; d + L <= values.n_dims; d += L) tile.template operator()<1, true>(d, L, nullptr);
  if (d < values.n_dims) tile.template operator()<1, false>(d, values.n_dims - d, nullptr);
}

}  // namespace
}  // namespace thermocline
