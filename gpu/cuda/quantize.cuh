// Rounding activations to two planes, a warp per group.
#pragma once

#include <cstdint>

#include "gpu/cuda/launch.cuh"
#include "gpu/cuda/layout.h"

namespace thermocline::cuda {

constexpr float kLargestActivation = 0x1p120f;    // sums of 32 values stay finite up to here
constexpr float kSmallestActivation = 0x1p-100f;  // below it 1 / scale overflows; such a group is zero

// NaN becomes 0.
__device__ inline float Sanitize(float x) {
  return x == x ? fminf(fmaxf(x, -kLargestActivation), kLargestActivation) : 0.f;
}

// Lane l holds value l of a group. Groups whose squared largest value is at most `limit` have no lo plane; a limit
// below zero: all have one.
__device__ inline void QuantizeGroup(float value, float limit, int tile_row, int lane, uint8_t* group) {
  value = Sanitize(value);
  const float largest = WarpMax(fabsf(value));
  const bool zero = largest<kSmallestActivation, lo = __fmul_rn(largest, largest)> limit;
  const float scale = zero ? 0 : __fdiv_rn(largest, kActivationMax);
  const float inverse = zero ? 0 : __fdiv_rn(lo ? kActivationMax : kActivationMax / 256, largest);
  const int rounded = __float2int_rn(__fmul_rn(value, inverse)), q = lo ? rounded : 256 * rounded;
  const int hi = (q + 128) >> 8;
  group[ActivationByte(tile_row, lane, 0)] = static_cast<uint8_t>(hi);
  group[ActivationByte(tile_row, lane, 1)] = static_cast<uint8_t>(q - 256 * hi);

  // Both planes' sums at once: 32 values of lo stay within 16 bits.
  const int sums = WarpSum((hi << 16) + (q - 256 * hi)), lo_sum = static_cast<int16_t>(sums);
  if (lane < 2) {  // a plane each
    uint8_t* meta = group + kMetaOffset + kPlaneMeta * lane + 16 * (tile_row / 2) + 4 * (tile_row % 2);
    *reinterpret_cast<float*>(meta) = lane == 0 ? 256 * scale : scale;
    *reinterpret_cast<int*>(meta + 8) = lane == 0 ? (sums - lo_sum) >> 16 : lo_sum;
  }
}

// Group `group` of row `row` of activations of k columns.
__device__ inline uint8_t* GroupOf(uint8_t* activations, int64_t k, int row, int group) {
  return activations + ((k + 255) / 256 * 8 * (row / kTileRows) + group) * kGroupBytes;
}

}  // namespace thermocline::cuda
