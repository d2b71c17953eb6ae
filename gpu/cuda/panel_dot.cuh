// 16 rows of weights times tiles of 8 rows of activations, by one warp.
#pragma once

#include "gpu/cuda/launch.cuh"
#include "gpu/cuda/tile.cuh"

namespace thermocline::cuda {

// c += a b: 16 rows x 32 k by 32 k x 8 columns of s8, as mma.m16n8k32 has them; on sm_75 in quarters.
__device__ inline void Mma32(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  for (int row = 0; row < 2; ++row)
    for (int half = 0; half < 2; ++half)
      asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+r"(c[2 * row]), "+r"(c[2 * row + 1])
          : "r"(a[2 * half + row]), "r"(half == 0 ? b0 : b1));
#endif
}

// The same over 16 k.
__device__ inline void Mma16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
#else
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c[0]), "+r"(c[1])
      : "r"(a0), "r"(b));
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(c[2]), "+r"(c[3])
      : "r"(a1), "r"(b));
#endif
}

// sum += (c x) w for the columns' scales x and the rows' scales w.
__device__ inline void Scale(const int (&c)[4], const float2& x, float w0, float w1, float (&sum)[4]) {
  sum[0] = __fmaf_rn(__fmul_rn(static_cast<float>(c[0]), x.x), w0, sum[0]);
  sum[1] = __fmaf_rn(__fmul_rn(static_cast<float>(c[1]), x.y), w0, sum[1]);
  sum[2] = __fmaf_rn(__fmul_rn(static_cast<float>(c[2]), x.x), w1, sum[2]);
  sum[3] = __fmaf_rn(__fmul_rn(static_cast<float>(c[3]), x.y), w1, sum[3]);
}

// Decode: the 8 columns of operand b are the hi planes of 4 rows, then their lo planes, which are added at the very
// end.
inline constexpr int kQuadRows = 4;

// Shared memory that a warp streams through: stages of 256 k, each weights and then activations. Copies are
// asynchronous (from sm_80 on), so that no register waits for them: loads return in order, and compilers let several
// share the one scoreboard that a use waits for. Nothing is stored there by hand, and nothing unpacked.
template <typename T, int kRows>
struct Stage {
  static constexpr int kUnits = 256 / kUnitK;
  static constexpr int kWeightBytes = T::kBlockBytes * 256 / T::kBlockK;
  static constexpr int kCodeBytes = 64 * kRows, kXBytes = kCodeBytes + 2 * kPlaneMeta;  // of a group
  static constexpr int kBytes = kWeightBytes + 2 * kUnits * kXBytes;
};

// 16 bytes to shared memory. `once`: past L1.
template <bool once>
__device__ inline void CopyAsync(uint8_t* to, const uint8_t* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if (once)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
#endif
}
__device__ inline void CommitCopies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last kLeft groups have come, for the whole warp.
template <int kLeft>
__device__ inline void AwaitCopies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
  __syncwarp();
}

// Units [0, n_units) of the weights at `from`.
template <typename T, int kRows>
__device__ inline void CopyWeights(const uint8_t* from, int n_units, int lane, uint8_t* stage) {
  const int bytes = T::kBlockK == kUnitK ? n_units * T::kBlockBytes : T::kBlockBytes;
#pragma unroll
  for (int i = 0; i < Stage<T, kRows>::kWeightBytes; i += 512)
    if (i + 16 * lane < bytes) CopyAsync<true>(stage + i + 16 * lane, from + i + 16 * lane);
}

// Activations of rows [0, m) of the tile at x, from group `group` on.
template <typename T, int kRows>
__device__ inline void CopyX(const uint8_t* x, int group, int n_groups, int m, int lane, uint8_t* stage) {
  using S = Stage<T, kRows>;
  const uint8_t* from = x + int64_t{group} * kGroupBytes;
  uint8_t* to = stage + S::kWeightBytes;
#pragma unroll
  for (int g = 0; g < 2 * S::kUnits; ++g, from += kGroupBytes, to += S::kXBytes) {
    if (g >= n_groups) break;
    if (kRows == kTileRows) {
      if (lane < 4 * m) CopyAsync<false>(to + 16 * lane, from + 16 * lane);
      if (lane < 8) CopyAsync<false>(to + S::kCodeBytes + 16 * lane, from + kMetaOffset + 16 * lane);
    } else {
      const bool meta = lane >= 24;
      if (meta || lane < 4 * m)
        CopyAsync<false>(to + (meta ? S::kCodeBytes + 16 * (lane - 24) : 16 * lane),
                         from + (meta ? kMetaOffset + 16 * (lane - 24) : 16 * lane));
    }
  }
}

// sum[t] += unit of W times the unit of activations at x in a stage, rows 4t .. 4t+3 of a tile: of lane 4r + i,
// elements are (row r, column 2i), (r, 2i + 1), (r + 8, 2i), (r + 8, 2i + 1), where column c is plane c / 4 of row 4t +
// c % 4. kFactor times too much; columns of rows from m on come out as anything.
template <typename T, int kRows, int kQuads>
__device__ inline void MultiplyUnit(const T& w, const uint8_t* x, int m, int lane, float (&sum)[kQuads][4]) {
  using S = Stage<T, kRows>;
  const int n = lane / 4, i = lane % 4;
#pragma unroll
  for (int chunk = 0; chunk < 2; ++chunk, x += S::kXBytes) {
    uint32_t a[4];
    w.Fragment(chunk, a);
#pragma unroll
    for (int t = 0; t < kQuads; ++t) {
      const int row = kQuadRows * t + n % 4;
      uint2 b{};
      if (row < m) b = *reinterpret_cast<const uint2*>(x + 16 * (4 * row + i) + 8 * (n / 4));
      const uint8_t* meta = x + S::kCodeBytes + kPlaneMeta * (i / 2) + 16 * (i % 2) + 32 * t;
      const float2 scale = *reinterpret_cast<const float2*>(meta);
      int c[4] = {};
      if constexpr (T::kHalves) {
        int d[4] = {};
        Mma16(c, a[0], a[1], b.x);
        Mma16(d, a[2], a[3], b.y);
        Scale(c, scale, w.Scale(chunk, 0, 0), w.Scale(chunk, 0, 1), sum[t]);
        Scale(d, scale, w.Scale(chunk, 1, 0), w.Scale(chunk, 1, 1), sum[t]);
      } else {
        Mma32(c, a, b.x, b.y);
        Scale(c, scale, w.Scale(chunk, 0, 0), w.Scale(chunk, 0, 1), sum[t]);
        if constexpr (T::kHasMin) {
          const int2 sums = *reinterpret_cast<const int2*>(meta + 8);
          const int s[4] = {sums.x, sums.y, sums.x, sums.y};
          Scale(s, scale, w.Min(chunk, 0), w.Min(chunk, 1), sum[t]);
        }
      }
    }
  }
}

// One panel of n_units units times rows [0, m) of the tile of activations at x; this warp takes every `step`-th stage
// from `begin` on. `ring`: kStages stages of the warp's own. Weights are on their way before `wait`, behind which x
// may be read.
template <typename T, int kRows, int kStages, int kQuads, typename Wait>
__device__ void PanelDot(const uint8_t* panel, int n_units, int begin, int step, const uint8_t* x, int m, int lane,
                         uint8_t* ring, const Wait& wait, float (&sum)[kQuads][4]) {
  using S = Stage<T, kRows>;
  constexpr int kAhead = kStages - 1;
  const int n_stages = (n_units + S::kUnits - 1) / S::kUnits;
  const auto units_of = [&](int stage) { return min(S::kUnits, n_units - stage * S::kUnits); };
  const auto copy_weights = [&](int stage, int slot) {
    if (stage < n_stages)
      CopyWeights<T, kRows>(panel + int64_t{stage} * S::kWeightBytes, units_of(stage), lane, ring + slot * S::kBytes);
  };
  const auto copy_x = [&](int stage, int slot) {
    if (stage < n_stages)
      CopyX<T, kRows>(x, stage * 2 * S::kUnits, 2 * units_of(stage), m, lane, ring + slot * S::kBytes);
    CommitCopies();
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) copy_weights(begin + i * step, i);
  wait();
#pragma unroll
  for (int i = 0; i < kAhead; ++i) copy_x(begin + i * step, i);
  int slot = 0;
  for (int stage = begin; stage < n_stages; stage += step) {
    AwaitCopies<kAhead - 1>();
    const int behind = slot == 0 ? kAhead : slot - 1;  // all lanes have read it
    copy_weights(stage + kAhead * step, behind);
    copy_x(stage + kAhead * step, behind);
    const uint8_t* at = ring + slot * S::kBytes;
#pragma unroll
    for (int unit = 0; unit < S::kUnits; ++unit) {
      if (unit >= units_of(stage)) break;
      T w;
      w.template Load<FromShared>(at, unit, lane);
      MultiplyUnit<T, kRows, kQuads>(w, at + S::kWeightBytes + unit * 2 * S::kXBytes, m, lane, sum);
    }
    slot = slot == kAhead ? 0 : slot + 1;
  }
}

}  // namespace thermocline::cuda
