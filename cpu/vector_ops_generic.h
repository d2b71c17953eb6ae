// The vector ops as one algorithm over a thin vector type V, compiled once per instruction set (vector_ops_avx2.cc,
// vector_ops_avx512.cc; the larger ones in headers of their own, joined in vector_ops_instance.h).
//
//   V::F, V::I             floats, int32s of one register; V::kLanes of them
//   V::Load, LoadHalf, LoadBf16 (p), and (p, n): the first n < kLanes only, zeros behind them
//   V::Store, StoreHalf (p, v), and (p, v, n)
//   V::LoadPairs (p), (p, n)   two neighbouring s8 or s16 in each lane, as s16; V::DotPairs (sum, a, b) adds their two
//                          products; V::StorePairs (p, even, odd) makes such pairs of int32s
//   V::AbsHalves (p), MaxHalves   F16 without sign as 16-bit integers, which order as they do, NaN above all
//   V::Min, Max            give the second operand where one is NaN
//
// Everything is in an anonymous namespace and calls nothing of the standard library: an inline function compiled here
// with wide instructions must never be the copy that the linker keeps for the rest of the program.
#pragma once

#include <immintrin.h>

#include "cpu/vector_ops_tables.h"

namespace thermocline {
namespace {

constexpr float kInfinity = __builtin_inff();

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }
// The largest of 8 numbers from 0 to 0x7FFF.
inline uint16_t MaxOf8(__m128i x) {
  const __m128i below = _mm_sub_epi16(_mm_set1_epi16(0x7FFF), x);
  return static_cast<uint16_t>(0x7FFF - _mm_cvtsi128_si32(_mm_minpos_epu16(below)));
}
inline float Sqrt(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// e^x within 1 ulp, 0 below -104, infinite above 88.73; NaN stays. x = n ln 2 + r with |r| <= ln 2 / 2, and
// e^r = 1 + r + r^2 P(r), P minimax of degree 4 (relative error 2^-28).
template <typename V>
typename V::F Exp(typename V::F x) {
  x = V::Min(V::Set(89.f), V::Max(V::Set(-104.f), x));
  const auto n = V::Round(V::Mul(x, V::Set(1.44269504088896341f)));
  auto r = V::Fma(n, V::Set(-0.693145751953125f), x);  // ln 2 in two parts, so that this product is exact
  r = V::Fma(n, V::Set(-1.4286068202862268e-6f), r);
  auto p = V::Set(0.0013814487028867006f);
  p = V::Fma(p, r, V::Set(0.0083687799051404f));
  p = V::Fma(p, r, V::Set(0.04166839271783829f));
  p = V::Fma(p, r, V::Set(0.1666651964187622f));
  p = V::Fma(p, r, V::Set(0.4999999403953552f));
  p = V::Fma(V::Mul(p, r), r, r);
  return V::ScaleByPower(V::Add(p, V::Set(1.f)), n);
}

template <typename V>
float ExpOf(float x) {
  return V::First(Exp<V>(V::Set(x)));
}

template <typename V>
void RmsNorm(const float* x, const float* weight, float eps, int n, bool accumulate, float* out) {
  constexpr int L = V::kLanes;
  typename V::F sums[4] = {V::Set(0.f), V::Set(0.f), V::Set(0.f), V::Set(0.f)};
  int i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int j = 0; j < 4; ++j) {
      const auto value = V::Load(x + i + j * L);
      sums[j] = V::Fma(value, value, sums[j]);
    }
  for (; i < n; i += L) {
    const auto value = n - i < L ? V::Load(x + i, n - i) : V::Load(x + i);
    sums[0] = V::Fma(value, value, sums[0]);
  }
  const float sum = V::ReduceAdd(V::Add(V::Add(sums[0], sums[1]), V::Add(sums[2], sums[3])));
  const auto factor = V::Set(1.f / Sqrt(sum / static_cast<float>(n) + eps));
  for (i = 0; i + L <= n; i += L) {
    const auto normed = V::Mul(V::Mul(V::Load(x + i), factor), V::Load(weight + i));
    V::Store(out + i, accumulate ? V::Add(V::Load(out + i), normed) : normed);
  }
  if (const int rest = n - i; rest > 0) {
    const auto normed = V::Mul(V::Mul(V::Load(x + i, rest), factor), V::Load(weight + i, rest));
    V::Store(out + i, accumulate ? V::Add(V::Load(out + i, rest), normed) : normed, rest);
  }
}

// The sum of what add(x[i], sum so far) adds: whole registers in four columns, then one by one, as the zeros of a
// partial register would be added too.
template <typename V, typename AddTerm>
float Sum(const float* x, int n, const AddTerm& add) {
  constexpr int L = V::kLanes;
  typename V::F sums[4] = {V::Set(0.f), V::Set(0.f), V::Set(0.f), V::Set(0.f)};
  int i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int j = 0; j < 4; ++j) sums[j] = add(V::Load(x + i + j * L), sums[j]);
  for (; i + L <= n; i += L) sums[0] = add(V::Load(x + i), sums[0]);
  float rest = 0;
  for (; i < n; ++i) rest = V::First(add(V::Set(x[i]), V::Set(rest)));
  return V::ReduceAdd(V::Add(V::Add(sums[0], sums[1]), V::Add(sums[2], sums[3]))) + rest;
}

template <typename V>
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int n, float* out) {
  constexpr int L = V::kLanes;
  using F = typename V::F;
  const auto mean = V::Set(Sum<V>(x, n, [](F value, F sum) { return V::Add(value, sum); }) / static_cast<float>(n));
  const float squares = Sum<V>(x, n, [mean](F value, F sum) {
    const F distance = V::Sub(value, mean);
    return V::Fma(distance, distance, sum);
  });
  const auto factor = V::Set(1.f / Sqrt(squares / static_cast<float>(n) + eps));
  int i = 0;
  for (; i + L <= n; i += L) {
    const auto normed = V::Mul(V::Sub(V::Load(x + i), mean), factor);
    V::Store(out + i, V::Fma(normed, V::Load(weight + i), V::Load(bias + i)));
  }
  if (const int rest = n - i; rest > 0) {
    const auto normed = V::Mul(V::Sub(V::Load(x + i, rest), mean), factor);
    V::Store(out + i, V::Fma(normed, V::Load(weight + i, rest), V::Load(bias + i, rest)), rest);
  }
}

template <typename V>
void Rope(float* head, const float* cos_sin, int n_dims, RopeKind kind) {
  constexpr int L = V::kLanes;
  const int n_pairs = n_dims / 2;
  if (kind == RopeKind::kInterleaved) {
    int i = 0;
    for (; i + L <= 2 * n_pairs; i += L) V::Store(head + i, V::Rotate(V::Load(head + i), V::Load(cos_sin + i)));
    if (const int rest = 2 * n_pairs - i; rest > 0)
      V::Store(head + i, V::Rotate(V::Load(head + i, rest), V::Load(cos_sin + i, rest)), rest);
    return;
  }
  float* other = head + n_pairs;
  for (int i = 0; i < n_pairs; i += L) {
    const int n = static_cast<int>(Least(L, n_pairs - i));
    typename V::F cosine, sine, a, b;
    if (n == L) {
      V::Deinterleave(V::Load(cos_sin + 2 * i), V::Load(cos_sin + 2 * i + L), cosine, sine);
      a = V::Load(head + i), b = V::Load(other + i);
    } else {
      const auto front = 2 * n < L ? V::Load(cos_sin + 2 * i, 2 * n) : V::Load(cos_sin + 2 * i);
      const auto back = 2 * n > L ? V::Load(cos_sin + 2 * i + L, 2 * n - L) : V::Set(0.f);
      V::Deinterleave(front, back, cosine, sine);
      a = V::Load(head + i, n), b = V::Load(other + i, n);
    }
    const auto rotated_a = V::Fma(a, cosine, V::Neg(V::Mul(b, sine)));
    const auto rotated_b = V::Fma(b, cosine, V::Mul(a, sine));
    if (n == L) {
      V::Store(head + i, rotated_a), V::Store(other + i, rotated_b);
    } else {
      V::Store(head + i, rotated_a, n), V::Store(other + i, rotated_b, n);
    }
  }
}

// ReLU is max(0, x); NaN stays. The others are x / (1 + e^-u): u = x for SiLU, and with u = 2 y it is x (1 + tanh y) /
// 2 without cancellation.
template <typename V>
typename V::F Activate(typename V::F x, Activation activation) {
  if (activation == Activation::kRelu) return V::Max(V::Set(0.f), x);
  auto u = x;
  if (activation == Activation::kGeluTanh) {
    constexpr float kTwice = 1.59576912160573071f, kCubic = 0.044715f;  // 2 sqrt(2 / pi)
    u = V::Mul(V::Mul(V::Set(kTwice), x), V::Fma(V::Mul(x, x), V::Set(kCubic), V::Set(1.f)));
  }
  return V::Div(x, V::Add(V::Set(1.f), Exp<V>(V::Neg(u))));
}

template <typename V>
void GatedAct(const float* gate, const float* up, int n, Activation activation, float* out) {
  int i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes)
    V::Store(out + i, V::Mul(Activate<V>(V::Load(gate + i), activation), V::Load(up + i)));
  if (const int rest = n - i; rest > 0)
    V::Store(out + i, V::Mul(Activate<V>(V::Load(gate + i, rest), activation), V::Load(up + i, rest)), rest);
}

template <typename V>
void Act(const float* x, int n, Activation activation, float* out) {
  int i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(out + i, Activate<V>(V::Load(x + i), activation));
  if (const int rest = n - i; rest > 0) V::Store(out + i, Activate<V>(V::Load(x + i, rest), activation), rest);
}

template <typename V>
void Add(const float* x, int n, float* out) {
  int i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) V::Store(out + i, V::Add(V::Load(out + i), V::Load(x + i)));
  if (const int rest = n - i; rest > 0) V::Store(out + i, V::Add(V::Load(out + i, rest), V::Load(x + i, rest)), rest);
}

// How values stand in memory, and become registers of floats.
struct F32Values {
  using Element = float;
  template <typename V, typename... N>
  static typename V::F Load(const float* p, N... n) {
    return V::Load(p, n...);
  }
};
struct F16Values {
  using Element = uint16_t;
  template <typename V, typename... N>
  static typename V::F Load(const uint16_t* p, N... n) {
    return V::LoadHalf(p, n...);
  }
};
struct Bf16Values {
  using Element = uint16_t;
  template <typename V, typename... N>
  static typename V::F Load(const uint16_t* p, N... n) {
    return V::LoadBf16(p, n...);
  }
};

}  // namespace
}  // namespace thermocline
