// How activations stand in memory when they meet integer weights: 16 bits per value with one scale per 32 values, kept
// as two s8 planes, because 8 bits alone cost the default model its right answers (HACKING.md "Numerics").
//
//   q[k] = round(x[k] / scale), |q| <= 127 * 256;  q = 256 * hi + lo,  hi in [-127, 127], lo in [-128, 127]
//
// One row: n_groups lines of 64 bytes [hi of 32 values | lo of 32 values], then n_groups ActivationMeta.
#pragma once

#include <cstdint>

namespace thermocline {

inline constexpr int kActivationGroup = 32;
inline constexpr int kActivationMax = 127 * 256;

struct ActivationMeta {
  float scale;
  float sum16[2];  // scale * (sum of q over the first, second 16 values): what a weight's min or zero point multiplies
  float sum32;     // scale * (sum of q over all 32)
};
static_assert(sizeof(ActivationMeta) == 16);

// K rounded up to whole pairs of groups, as panels are; values past K are zero.
inline int64_t ActivationGroups(int64_t k) { return (k + 63) / 64 * 2; }
// A multiple of 64.
inline int64_t ActivationRowBytes(int64_t k) { return (ActivationGroups(k) * (64 + 16) + 63) / 64 * 64; }

}  // namespace thermocline
