// Keys and values on their way into a page (models/kv_layout.h).
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

// Every rounding as in the scalar definition. Value d becomes byte at(d).
template <typename V, typename At>
void StoreQ8(const float* x, int head_dim, uint16_t* scales, uint8_t* to, const At& at) {
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
    int16_t q[kKvGroup];
    for (int j = 0; j < kKvGroup / L; ++j)
      V::StoreS16(q + j * L, V::ToInt(V::Max(V::Set(-kMost), V::Min(V::Set(kMost), V::Mul(values[j], inverse)))));
    *scales = halves[0];
    for (int i = 0; i < n; ++i) to[at(d + i)] = static_cast<uint8_t>(q[i]);
  }
}

template <typename V>
void StoreKv(KvTypes types, const float* key, const float* value, int head_dim, int slot, uint8_t* page) {
  const int64_t scale_bytes = 2 * KvGroups(head_dim) * kPageTokens;
  uint16_t* halves = reinterpret_cast<uint16_t*>(page);
  if (types.key == DType::kQ8_0)
    StoreQ8<V>(key, head_dim, halves + slot, page + scale_bytes,
               [=](int d) { return d / 2 * (2 * kPageTokens) + 2 * slot + d % 2; });
  else
    StoreF16<V>(key, head_dim, halves + slot, kPageTokens);
  page += KvSideBytes(types.key, head_dim);
  halves = reinterpret_cast<uint16_t*>(page);
  if (types.value == DType::kQ8_0)
    StoreQ8<V>(value, head_dim, halves + slot, page + scale_bytes,
               [=](int d) { return slot / 2 * 2 * head_dim + 2 * d + slot % 2; });
  else
    StoreF16<V>(value, head_dim, halves + int64_t{slot} * head_dim, 1);
}

}  // namespace
}  // namespace thermocline
