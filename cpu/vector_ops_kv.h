// Keys and values on their way into a page (cpu/kv_layout.h).
#pragma once

#include "cpu/vector_ops_quantize.h"

namespace thermocline {
namespace {

constexpr float kLargestHalf = 65504;

template <typename V>
void StoreF16(const float* x, int head_dim, uint16_t* to, int64_t stride) {
  constexpr int L = V::kLanes;
  for (int d = 0; d < head_dim; d += L) {
    const int n = static_cast<int>(Least(L, head_dim - d));
    const auto values = n == L ? V::Load(x + d) : V::Load(x + d, n);
    uint16_t halves[L];
    V::StoreHalf(halves, V::Max(V::Set(-kLargestHalf), V::Min(V::Set(kLargestHalf), values)));
    for (int i = 0; i < n; ++i, to += stride) *to = halves[i];
  }
}

// Every rounding as in the scalar definition.
template <typename V>
void StoreQ8(const float* x, int head_dim, uint16_t* scales, uint8_t* to, int64_t stride) {
  constexpr int L = V::kLanes;
  constexpr float kMost = 127;
  for (int d = 0; d < head_dim; d += kKvGroup, scales += kPageTokens) {
    const int n = static_cast<int>(Least(kKvGroup, head_dim - d));
    typename V::F values[kKvGroup / L];
    LoadGroup<V>(x + d, n, kLargestHalf, values);
    auto largest = V::Set(0.f);
    for (const auto value : values) largest = V::Max(largest, V::Abs(value));
    uint16_t halves[L];
    V::StoreHalf(halves, V::Set(V::ReduceMax(largest) / kMost));
    const float scale = V::First(V::LoadHalf(halves));
    const auto inverse = V::Set(scale == 0 ? 0.f : 1 / scale);
    uint8_t unused[kKvGroup], bytes[kKvGroup];
    for (int j = 0; j < kKvGroup / L; ++j) {
      const auto scaled = V::Max(V::Set(-kMost), V::Min(V::Set(kMost), V::Mul(values[j], inverse)));
      V::StorePlanes(unused + j * L, bytes + j * L, V::ToInt(scaled));
    }
    *scales = halves[0];
    for (int i = 0; i < n; ++i, to += stride) *to = bytes[i];
  }
}

// Value d of `x` becomes element first + d * stride of the keys or values of a page.
template <typename V>
void StoreSide(DType type, const float* x, int head_dim, int slot, int64_t first, int64_t stride, uint8_t* side) {
  uint16_t* halves = reinterpret_cast<uint16_t*>(side);
  if (type == DType::kF16) return StoreF16<V>(x, head_dim, halves + first, stride);
  const int64_t scale_bytes = KvGroups(head_dim) * kPageTokens * 2;
  StoreQ8<V>(x, head_dim, halves + slot, side + scale_bytes + first, stride);
}

template <typename V>
void StoreKv(KvTypes types, const float* key, const float* value, int head_dim, int slot, uint8_t* page) {
  StoreSide<V>(types.key, key, head_dim, slot, slot, kPageTokens, page);
  StoreSide<V>(types.value, value, head_dim, slot, int64_t{slot} * head_dim, 1,
               page + KvSideBytes(types.key, head_dim));
}

}  // namespace
}  // namespace thermocline
