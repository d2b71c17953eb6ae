// Products of float weights with one row (cpu/float_linear.h).
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

// kRows rows share each load of x. Each sums even and odd registers of k apart, whatever kRows is.
template <typename V, typename Values, int kRows>
void GemvRows(const uint8_t* w, int64_t stride_bytes, int64_t k, const float* x, float* y) {
  constexpr int L = V::kLanes;
  using Row = const typename Values::Element*;
  typename V::F sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = V::Set(0.f);
  int64_t i = 0;
  for (; i + 2 * L <= k; i += 2 * L) {
    const auto x0 = V::Load(x + i), x1 = V::Load(x + i + L);
    for (int r = 0; r < kRows; ++r) {
      const Row row = reinterpret_cast<Row>(w + r * stride_bytes);
      sums[r][0] = V::Fma(Values::template Load<V>(row + i), x0, sums[r][0]);
      sums[r][1] = V::Fma(Values::template Load<V>(row + i + L), x1, sums[r][1]);
    }
  }
  for (; i < k; i += L) {
    const int n = static_cast<int>(Least(L, k - i));
    const auto x0 = n == L ? V::Load(x + i) : V::Load(x + i, n);
    for (int r = 0; r < kRows; ++r) {
      const Row row = reinterpret_cast<Row>(w + r * stride_bytes) + i;
      sums[r][0] = V::Fma(n == L ? Values::template Load<V>(row) : Values::template Load<V>(row, n), x0, sums[r][0]);
    }
  }
  for (int r = 0; r < kRows; ++r) y[r] = V::ReduceAdd(V::Add(sums[r][0], sums[r][1]));
}

template <typename V, typename Values>
void Gemv(const uint8_t* w, int64_t stride_bytes, int64_t n, int64_t k, const float* x, float* y) {
  int64_t row = 0;
  for (; row + 4 <= n; row += 4) GemvRows<V, Values, 4>(w + row * stride_bytes, stride_bytes, k, x, y + row);
  for (; row < n; ++row) GemvRows<V, Values, 1>(w + row * stride_bytes, stride_bytes, k, x, y + row);
}

template <typename V>
void FloatGemv(DType type, const uint8_t* w, int64_t stride_bytes, int64_t n, int64_t k, const float* x, float* y) {
  if (type == DType::kF32) return Gemv<V, F32Values>(w, stride_bytes, n, k, x, y);
  if (type == DType::kF16) return Gemv<V, F16Values>(w, stride_bytes, n, k, x, y);
  return Gemv<V, Bf16Values>(w, stride_bytes, n, k, x, y);
}

}  // namespace
}  // namespace thermocline
