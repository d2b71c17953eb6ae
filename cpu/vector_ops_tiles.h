// The inner loops of attention over F16 in floats (vector_ops_attention_f16.h): tiles of queries times registers.
#pragma once

#include "cpu/vector_ops_attention_page.h"

namespace thermocline {
namespace {

// scores[i][t] = sum over d of q[i][d] keys[d][t] for kQueries queries and all slots.
template <typename V, int kVectors, int kQueries>
void ScoreTile(const float* q, int64_t head_dim, const uint16_t* keys, const uint8_t* ahead,
               float (*scores)[kPageTokens]) {
  constexpr int L = V::kLanes, T = kVectors;
  for (int first = 0; first < kPageTokens; first += T * L) {
    typename V::F sums[kQueries][T];
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) sums[i][j] = V::Set(0.f);
    const auto* row = keys + first;
    for (int d = 0; d < head_dim; ++d, row += kPageTokens) {
      PrefetchNext<2 * T * L>(ahead);
      typename V::F key[T];
      for (int j = 0; j < T; ++j) key[j] = V::LoadHalf(row + j * L);
      for (int i = 0; i < kQueries; ++i) {
        const auto factor = V::Set(q[i * head_dim + d]);
        for (int j = 0; j < T; ++j) sums[i][j] = V::Fma(factor, key[j], sums[i][j]);
      }
    }
    for (int i = 0; i < kQueries; ++i)
      for (int j = 0; j < T; ++j) V::Store(scores[i] + first + j * L, sums[i][j]);
  }
}

// Where V comes from and goes to.
struct ValueSpan {
  const uint16_t* values;  // (64, head_dim)
  int64_t head_dim;
  float* acc;  // (n_queries, head_dim)
};

// acc[i][d] = acc[i][d] * rescale[i] + sum over slots [begin, end) of weights[i][t] * value[t][d], for kVectors
// registers of dims from `dim` on; where there is but a part of a register, n_last is how much.
template <typename V, int kQueries, int kVectors, bool kWhole>
void ValueTile(const ValueSpan& span, int dim, int n_last, const float (*weights)[kPageTokens], const float* rescale,
               int begin, int end, const uint8_t* ahead) {
  constexpr int L = V::kLanes;
  typename V::F sums[kQueries][kVectors];
  for (int i = 0; i < kQueries; ++i) {
    const auto factor = V::Set(rescale[i]);
    for (int j = 0; j < kVectors; ++j) {
      const float* from = span.acc + i * span.head_dim + dim + j * L;
      sums[i][j] = V::Mul(kWhole ? V::Load(from) : V::Load(from, n_last), factor);
    }
  }
  const auto* row = span.values + begin * span.head_dim + dim;
  for (int t = begin; t < end; ++t, row += span.head_dim) {
    PrefetchNext<2 * kVectors * L>(ahead);
    typename V::F value[kVectors];
    for (int j = 0; j < kVectors; ++j) value[j] = kWhole ? V::LoadHalf(row + j * L) : V::LoadHalf(row + j * L, n_last);
    for (int i = 0; i < kQueries; ++i) {
      const auto factor = V::Set(weights[i][t]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::Fma(factor, value[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kQueries; ++i)
    for (int j = 0; j < kVectors; ++j) {
      float* to = span.acc + i * span.head_dim + dim + j * L;
      if constexpr (kWhole) {
        V::Store(to, sums[i][j]);
      } else {
        V::Store(to, sums[i][j], n_last);
      }
    }
}

template <typename V, int kMostVectors, int kQueries>
void ValueTiles(const ValueSpan& span, const float (*weights)[kPageTokens], const float* rescale, int begin, int end,
                const uint8_t* ahead) {
  constexpr int L = V::kLanes, T = kMostVectors;
  int d = 0;
  for (; d + T * L <= span.head_dim; d += T * L) {
    ValueTile<V, kQueries, T, true>(span, d, L, weights, rescale, begin, end, ahead);
    if (ahead != nullptr) ahead += 2 * T * L * kPageTokens;
  }
  for (; d + L <= span.head_dim; d += L)
    ValueTile<V, kQueries, 1, true>(span, d, L, weights, rescale, begin, end, nullptr);
  if (d < span.head_dim)
    ValueTile<V, kQueries, 1, false>(span, d, static_cast<int>(span.head_dim - d), weights, rescale, begin, end,
                                     nullptr);
}

}  // namespace
}  // namespace thermocline
