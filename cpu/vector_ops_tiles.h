// The inner loops of attention (vector_ops_attention.h): tiles of queries times registers.
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

// Memory is read in order: half a page (8 KiB at head_dim 64) ahead of use covers its latency, and goes to L2, whose
// queue is the longer one. Measured with huge pages, one core: 13.5 GB/s of a plain stream's 17; into L1 less, without
// prefetch 7 (bench/kernels/attention_bench.cc).
template <int64_t kBytes>
void PrefetchNext(const uint8_t*& ahead) {
  if (ahead == nullptr) return;
  for (int64_t i = 0; i < kBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
  ahead += kBytes;
}

// Some dims of the keys or the values of a page.
template <typename Values>
struct Side {
  const typename Values::Element* elements;  // keys (n_dims, 64), values (64, n_dims)
  int64_t stride;                            // of rows, in elements
  const float* scales;                       // (n_dims / 32, 64) where elements are scaled
};
template <typename Values>
constexpr bool kScaled = false;
template <>
inline constexpr bool kScaled<S8Values> = true;

// Keys of tokens t.. in dim d; values of dims d.. (n of them, if given) of token t.
template <typename V, typename Values>
typename V::F KeysAt(const Side<Values>& side, int64_t d, int t) {
  const auto keys = Values::template Load<V>(side.elements + d * side.stride + t);
  if constexpr (kScaled<Values>) return V::Mul(keys, V::Load(side.scales + d / kKvGroup * kPageTokens + t));
  return keys;
}
template <typename V, typename Values, typename... N>
typename V::F ValuesAt(const Side<Values>& side, int64_t t, int d, N... n) {
  const auto values = Values::template Load<V>(side.elements + t * side.stride + d, n...);
  if constexpr (kScaled<Values>) return V::Mul(values, V::Set(side.scales[d / kKvGroup * kPageTokens + t]));
  return values;
}

// scores[i][t] (+)= sum over n_dims of q[i][d] keys[d][t] for kQueries queries and all slots.
template <typename V, int kVectors, typename Values, int kQueries>
void ScoreTile(const float* q, int64_t q_stride, int n_dims, bool accumulate, Side<Values> keys, const uint8_t* ahead,
               float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = kVectors;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::F sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = accumulate ? V::Load(scores[i] + first + j * L) : V::Set(0.f);
    for (int d = 0; d < n_dims; ++d) {
      PrefetchNext<T * L * sizeof(typename Values::Element)>(ahead);
      typename V::F key[T];
      for (int j = 0; j < T; ++j) key[j] = KeysAt<V>(keys, d, first + j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = V::Set(q[i * q_stride + d]);
        for (int j = 0; j < T; ++j) sums[i][j] = V::Fma(factor, key[j], sums[i][j]);
      }
    }
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) V::Store(scores[i] + first + j * L, sums[i][j]);
  }
}

// Where weighted values come from and go to.
template <typename Values>
struct ValueSpan {
  Side<Values> side;
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
  for (int t = begin; t < end; ++t) {
    PrefetchNext<kVectors * L * sizeof(typename Values::Element)>(ahead);
    typename V::F value[kVectors];
    for (int j = 0; j < kVectors; ++j)
      value[j] = kWhole ? ValuesAt<V>(span.side, t, dim + j * L) : ValuesAt<V>(span.side, t, dim + j * L, n_last);
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
    if (ahead != nullptr) ahead += T * L * kPageTokens * sizeof(typename Values::Element);
  }
  for (; d + L <= span.n_dims; d += L)
    ValueTile<V, Values, kQueries, 1, true>(span, d, L, weights, rescale, begin, end, nullptr);
  if (d < span.n_dims)
    ValueTile<V, Values, kQueries, 1, false>(span, d, span.n_dims - d, weights, rescale, begin, end, nullptr);
}

}  // namespace
}  // namespace thermocline
