// Activations to two s8 planes (cpu/activations.h).
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

// The registers of one group of n <= 32 values: NaN becomes 0, infinities the largest value.
template <typename V>
void LoadGroup(const float* x, int n, float largest, typename V::F* values) {
  constexpr int L = V::kLanes;
  for (int j = 0; j < kActivationGroup / L; ++j) {
    const int rest = n - j * L;
    const auto value = rest >= L ? V::Load(x + j * L) : rest > 0 ? V::Load(x + j * L, rest) : V::Set(0.f);
    values[j] = V::Max(V::Min(V::ZeroNan(value), V::Set(largest)), V::Set(-largest));
  }
}

// Every rounding as in the scalar definition. Leaves meta->lo_groups alone.
template <typename V>
void QuantizeGroup(const typename V::F* values, float max, bool lo, uint8_t* hi, ActivationMeta* meta) {
  constexpr int L = V::kLanes;
  constexpr float kSmallest = 0x1p-100f;
  const bool zero = max < kSmallest;
  const float scale = zero ? 0.f : max / kActivationMax;
  const float inverse = zero ? 0.f : (lo ? kActivationMax : kActivationMax / 256) / max;
  typename V::I halves[2] = {V::ZeroInt(), V::ZeroInt()};
  for (int j = 0; j < kActivationGroup / L; ++j) {
    const auto rounded = V::ToInt(V::Mul(values[j], V::Set(inverse)));
    const auto q = lo ? rounded : V::Times256(rounded);
    V::StorePlanes(hi + j * L, hi + 64 + j * L, q);
    halves[j * L / 16] = V::AddInt(halves[j * L / 16], q);
  }
  *meta = MakeActivationMeta(scale, V::ReduceAddInt(halves[0]), V::ReduceAddInt(halves[1]), meta->lo_groups);
}

template <typename V>
void Quantize(const float* x, int64_t k, float large_group, uint8_t* out) {
  constexpr float kLargest = 0x1p120f;
  const int64_t n_groups = ActivationGroups(k);
  const auto meta = [&](int64_t group) { return reinterpret_cast<ActivationMeta*>(out + ActivationMetaOffset(group)); };
  typename V::F values[kActivationGroup / V::kLanes];
  const auto load = [&](int64_t group) {
    // Groups past K read nothing; the pointer must not run past the row either.
    const int64_t first = group * kActivationGroup, rest = Most(0, Least(kActivationGroup, k - first));
    LoadGroup<V>(x + (rest > 0 ? first : 0), static_cast<int>(rest), kLargest, values);
  };
  double squares = 0;
  for (int64_t group = 0; group < n_groups; ++group) {
    load(group);
    auto largest = V::Set(0.f);
    for (const auto value : values) largest = V::Max(largest, V::Abs(value));
    const float max = V::ReduceMax(largest);
    meta(group)->scale = max;
    meta(group)->lo_groups = 0;
    squares += double{max} * max;
  }
  const double limit = large_group < 0 ? -1 : large_group * squares / static_cast<double>(n_groups);
  for (int64_t group = 0; group < n_groups; ++group) {
    const float max = meta(group)->scale;
    const bool lo = double{max} * max > limit;
    load(group);
    QuantizeGroup<V>(values, max, lo, out + ActivationOffset(group * kActivationGroup, 0), meta(group));
    meta(group / kMaskGroups * kMaskGroups)->lo_groups |= static_cast<uint16_t>(lo << group % kMaskGroups);
  }
  for (int64_t i = ActivationOffset(n_groups * kActivationGroup, 0); i < ActivationRowBytes(k); ++i) out[i] = 0;
}

}  // namespace
}  // namespace thermocline
