// Prompts: 16 rows of weights times many rows of activations, by one warp.
#pragma once

#include "gpu/cuda/panel_dot.cuh"

namespace thermocline::cuda {

inline constexpr int kPromptTiles = 8;  // tiles of 8 rows

struct alignas(16) PairMeta {  // of two rows and one plane
  float2 scales;
  int2 sums;
};

// What the lo plane is added to.
__device__ inline void ShiftUp(int (&c)[4]) {
  for (int& value : c) value *= 256;
}

// sum[t] += unit of W times the unit of activations at x, tiles tile_bytes apart: of lane 4r + i, elements are (row r,
// column 2i), (r, 2i + 1), (r + 8, 2i), (r + 8, 2i + 1). Rows of activations from m on come out
// as anything. kFactor times too much.
template <typename T>
__device__ void MultiplyTiles(const T& w, const uint8_t* x, int64_t tile_bytes, int m, int lane,
                              float (&sum)[kPromptTiles][4]) {
  const int i = lane % 4;
#pragma unroll
  for (int chunk = 0; chunk < 2; ++chunk) {
    uint32_t a[4];
    w.Fragment(chunk, a);
#pragma unroll
    for (int t = 0; t < kPromptTiles; ++t) {
      if (kTileRows * t >= m) break;
      const uint8_t* group = x + t * tile_bytes + chunk * kGroupBytes;
      const uint4 b = *reinterpret_cast<const uint4*>(group + 16 * lane);
      const uint8_t* meta = group + kMetaOffset + 16 * i;
      const PairMeta lo = *reinterpret_cast<const PairMeta*>(meta + kPlaneMeta);
      int c[4] = {};
      if constexpr (T::kHalves) {
        int d[4] = {};
        Mma16(c, a[0], a[1], b.x);
        Mma16(d, a[2], a[3], b.y);
        ShiftUp(c);
        ShiftUp(d);
        Mma16(c, a[0], a[1], b.z);
        Mma16(d, a[2], a[3], b.w);
        Scale(c, lo.scales, w.Scale(chunk, 0, 0), w.Scale(chunk, 0, 1), sum[t]);
        Scale(d, lo.scales, w.Scale(chunk, 1, 0), w.Scale(chunk, 1, 1), sum[t]);
      } else {
        Mma32(c, a, b.x, b.y);
        ShiftUp(c);
        Mma32(c, a, b.z, b.w);
        Scale(c, lo.scales, w.Scale(chunk, 0, 0), w.Scale(chunk, 0, 1), sum[t]);
        if constexpr (T::kHasMin) {
          const int2 hi = *reinterpret_cast<const int2*>(meta + 8);
          const int sum0 = 256 * hi.x + lo.sums.x, sum1 = 256 * hi.y + lo.sums.y;
          const int s[4] = {sum0, sum1, sum0, sum1};
          Scale(s, lo.scales, w.Min(chunk, 0), w.Min(chunk, 1), sum[t]);
        }
      }
    }
  }
}

}  // namespace thermocline::cuda
