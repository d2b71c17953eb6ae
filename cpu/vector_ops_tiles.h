// The inner loops of attention over floats (vector_ops_attention_f16.h): tiles of queries times registers.
#pragma once

#include "cpu/vector_ops_attention_page.h"

namespace thermocline {
namespace {

// scores[i][t] (+)= sum over n_dims of q[i][d] keys[d][t] for kQueries queries and all slots.
template <typename V, int kVectors, typename Values, int kQueries>
void ScoreTile(const float* q, int64_t q_stride, int n_dims, bool accumulate, const typename Values::Element* keys,
               const uint8_t* ahead, float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = kVectors;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::F sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = accumulate ? V::Load(scores[i] + first + j * L) : V::Set(0.f);
    const auto* row = keys + first;
    for (int d = 0; d < n_dims; ++d, row += kPageTokens) {
      PrefetchNext<2 * T * L>(ahead);
      typename V::F key[T];
      for (int j = 0; j < T; ++j) key[j] = Values::template Load<V>(row + j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = V::Set(q[i * q_stride + d]);
        for (int j = 0; j < T; ++j) sums[i][j] = V::Fma(factor, key[j], sums[i][j]);
      }
    }
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) V::Store(scores[i] + first + j * L, sums[i][j]);
  }
}

// Where V comes from and goes to, for some of the dims.
template <typename Values>
struct ValueSpan {
  const typename Values::Element* values;  // (64, n_dims), stride elements apart
  int64_t stride;
  int n_dims;
  float* acc;  // (n_queries, n_dims), acc_stride floats apart
  int64_t acc_stride;
};

// acc[i][d] = acc[i][d] * rescale[i] + sum over slots [begin, end) of weights[i][t] * value[t][d], for kVectors
// registers of dims from `dim` on; where there is but a part of a register, n_last is how much.
template <typename V, typename Values, int kQueries, int kVectors, bool kWhole>
void ValueTile(const ValueSpan<Values>& span, int dim, int n_last, const float (*weights)[kPageTokens],
               const float* rescale, int begin, int end, const uint8_t* ahead) {
  constexpr int L = V::kLanes;
  typename V::F sums[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    const auto factor = V::Set(rescale[i]);
    for (int j = 0; j < kVectors; ++j) {
      const float* from = span.acc + i * span.acc_stride + dim + j * L;
      sums[i][j] = V::Mul(kWhole ? V::Load(from) : V::Load(from, n_last), factor);
    }
  }
  const auto* row = span.values + begin * span.stride + dim;
  for (int t = begin; t < end; ++t, row += span.stride) {
    PrefetchNext<2 * kVectors * L>(ahead);
    typename V::F value[kVectors];
    for (int j = 0; j < kVectors; ++j)
      value[j] = kWhole ? Values::template Load<V>(row + j * L) : Values::template Load<V>(row + j * L, n_last);
    for (int i = 0; i < kQueries; ++i) {
      const auto factor = V::Set(weights[i][t]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::Fma(factor, value[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < kVectors; ++j) {
      float* to = span.acc + i * span.acc_stride + dim + j * L;
      if constexpr (kWhole) {
        V::Store(to, sums[i][j]);
      } else {
        V::Store(to, sums[i][j], n_last);
      }
    }
}

template <typename V, int kMostVectors, typename Values, int kQueries>
void ValueTiles(const ValueSpan<Values>& span, const float (*weights)[kPageTokens], const float* rescale, int begin,
                int end, const uint8_t* ahead) {
  constexpr int L = V::kLanes, T = kMostVectors;
  int d = 0;
  for (; d + T * L <= span.n_dims; d += T * L) {
    ValueTile<V, Values, kQueries, T, true>(span, d, L, weights, rescale, begin, end, ahead);
    if (ahead != nullptr) ahead += 2 * T * L * kPageTokens;
  }
  for (; d + L <= span.n_dims; d += L)
    ValueTile<V, Values, kQueries, 1, true>(span, d, L, weights, rescale, begin, end, nullptr);
  if (d < span.n_dims)
    ValueTile<V, Values, kQueries, 1, false>(span, d, span.n_dims - d, weights, rescale, begin, end, nullptr);
}

}  // namespace
}  // namespace thermocline
