// Sums of outer products: the inner loop of feedback (cpu/feedback.cc), over the vector type V of vector_ops_generic.h
// and its V::kTileQueries.
#pragma once

#include <algorithm>

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

// kRows x kVectors registers of c; of the last one n_last floats.
template <typename V, int kRows, int kVectors, bool kWhole>
void OuterProductTile(const OuterProducts& args, int64_t i, int64_t j, int n_last) {
  constexpr int L = V::kLanes;
  typename V::F sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const float* from = args.c + (i + r) * args.c_stride + j + v * L;
      sums[r][v] = kWhole ? V::Load(from) : V::Load(from, n_last);
    }
  const float* a = args.a + i;
  const float* b = args.b + j;
  for (int64_t p = 0; p < args.n_products; ++p, a += args.a_stride, b += args.b_stride) {
    typename V::F values[kVectors];
    for (int v = 0; v < kVectors; ++v) values[v] = kWhole ? V::Load(b + v * L) : V::Load(b + v * L, n_last);
    for (int r = 0; r < kRows; ++r) {
      const auto factor = V::Set(a[r]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = V::Fma(factor, values[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      float* to = args.c + (i + r) * args.c_stride + j + v * L;
      if constexpr (kWhole) {
        V::Store(to, sums[r][v]);
      } else {
        V::Store(to, sums[r][v], n_last);
      }
    }
}

// Columns [j, j + 2 kLanes) of c, or what of them there is.
template <typename V, int kRows>
void OuterProductStrip(const OuterProducts& args, int64_t i, int64_t j) {
  constexpr int L = V::kLanes;
  if (j + 2 * L <= args.n) return OuterProductTile<V, kRows, 2, true>(args, i, j, L);
  if (j + L <= args.n) {
    OuterProductTile<V, kRows, 1, true>(args, i, j, L);
    j += L;
  }
  if (j < args.n) OuterProductTile<V, kRows, 1, false>(args, i, j, static_cast<int>(args.n - j));
}

template <typename V>
void AddOuterProducts(const OuterProducts& args) {
  // Products at a time, of which the columns of b stay in the L1 cache for all of a's.
  constexpr int64_t kProducts = 128;
  for (int64_t first = 0; first < args.n_products; first += kProducts) {
    OuterProducts part = args;
    part.a += first * args.a_stride;
    part.b += first * args.b_stride;
    part.n_products = std::min(kProducts, args.n_products - first);
    for (int64_t j = 0; j < args.n; j += 2 * V::kLanes) {
      int64_t i = 0;
      for (; i + V::kTileQueries <= args.m; i += V::kTileQueries) OuterProductStrip<V, V::kTileQueries>(part, i, j);
      for (; i < args.m; ++i) OuterProductStrip<V, 1>(part, i, j);
    }
  }
}

}  // namespace
}  // namespace thermocline
