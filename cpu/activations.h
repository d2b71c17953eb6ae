// How activations stand in memory when they meet integer weights: 16 bits per value with one scale per group of 32, as
// two s8 planes:
//
//   q[k] = round(x[k] / scale), |q| <= 127 * 256;  q = 256 * hi + lo,  hi in [-127, 127], lo in [-128, 127]
//
// Where 8 bits bear it q is rounded to a multiple of 256: lo is zero, and a product of many rows need not look at it
// (HACKING.md "Numerics").
//
// One row: for every pair of groups three lines of 64 bytes: hi, lo, and the two groups' ActivationMeta.
#pragma once

#include <cstdint>

namespace thermocline {

inline constexpr int kActivationGroup = 32;
inline constexpr int kActivationMax = 127 * 256;

struct ActivationMeta {
  float scale;
  // Sums of q over the group and its halves: times scale, for weights with a min; times kCorrection, for weights with a
  // zero point (8, or 8 shifted).
  float sum32, sum16[2];
  int32_t correction16[2], correction32;
  int8_t correction32_sign;  // 0 or -1, so that four bytes from the second of correction32 on are correction32 >> 8
  uint8_t unused;
  // In the first of every 16 metas: bit i is set if the i-th group from here has a lo plane.
  uint16_t lo_groups;
};
static_assert(sizeof(ActivationMeta) == 32);
inline constexpr int kCorrection = -8;
inline constexpr int kMaskGroups = 16;

// Of a group whose halves have these sums of q. Static, as files compiled for different instruction sets use it.
static inline ActivationMeta MakeActivationMeta(float scale, int32_t first, int32_t second, uint16_t lo_groups) {
  const int32_t sum = first + second, correction = kCorrection * sum;
  return {scale,
          scale * static_cast<float>(sum),
          {scale * static_cast<float>(first), scale * static_cast<float>(second)},
          {kCorrection * first, kCorrection * second},
          correction,
          static_cast<int8_t>(correction < 0 ? -1 : 0),
          0,
          lo_groups};
}

// Which groups have a lo plane: those whose squared scale is more than so many times the row's mean, as large ones make
// most of the error of 8 bits; or all.
inline constexpr float kAllGroups = -1;

// K rounded up to whole pairs of groups, as panels are; values past K are zero.
constexpr int64_t ActivationGroups(int64_t k) { return (k + 63) / 64 * 2; }
inline constexpr int kActivationPairBytes = 3 * 64;
inline constexpr int kActivationHiLine = 0, kActivationLoLine = 1, kActivationMetaLine = 2;  // of a pair
// Offset of value k within its row, in plane 0 (hi) or 1 (lo); of a group's meta.
constexpr int64_t ActivationOffset(int64_t k, int plane) { return k / 64 * kActivationPairBytes + 64 * plane + k % 64; }
constexpr int64_t ActivationMetaOffset(int64_t group) {
  return group / 2 * kActivationPairBytes + 128 + group % 2 * static_cast<int64_t>(sizeof(ActivationMeta));
}
// In which form prompt rows meet integer weights; generated rows are always in planes.
enum class PromptForm : uint8_t {
  kPlanes,  // as above
  kBf16,    // K values in BF16, and zeros up to whole pairs of groups (cpu/amx_linear.h). Rows are as far apart.
};
// Offset of value k, a multiple of 64, within a prompt row.
constexpr int64_t PromptOffset(PromptForm form, int64_t k) {
  return form == PromptForm::kBf16 ? 2 * k : ActivationOffset(k, 0);
}

// An odd number of lines: then the same line of many rows does not fall into the same sets of a cache.
constexpr int64_t ActivationRowBytes(int64_t k) { return (ActivationGroups(k) / 2 * 3 | 1) * 64; }

}  // namespace thermocline
