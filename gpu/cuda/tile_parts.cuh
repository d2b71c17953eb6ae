// What tiles (gpu/cuda/tile.cuh) are made of: reading, unpacking, interleaving.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "gpu/cuda/layout.h"

namespace thermocline::cuda {

// Where a tile is loaded from: memory, past L1, as weights are read once; or shared memory.
struct FromMemory {
  template <typename T>
  __device__ static T Read(const uint8_t* at) {
    return __ldcs(reinterpret_cast<const T*>(at));
  }
};
struct FromShared {
  template <typename T>
  __device__ static T Read(const uint8_t* at) {
    return *reinterpret_cast<const T*>(at);
  }
};

__device__ inline float LowHalf(uint32_t pair) { return __half2float(__ushort_as_half(static_cast<uint16_t>(pair))); }
__device__ inline float HighHalf(uint32_t pair) { return LowHalf(pair >> 16); }
__device__ inline float HalfOf(const uint2& four, int i) {
  const uint32_t pair = i < 2 ? four.x : four.y;
  return i % 2 == 0 ? LowHalf(pair) : HighHalf(pair);
}

// Of symmetric types a fragment has kFactor times the codes, whose sign is then where s8 has it; sums are divided by it
// at the very end, which is exact.

// The nibbles of two words as the operand a of mma.m16n8k32: rows r, r + 8 of quad i, then of quad i + 4.
__device__ inline void Nibbles(uint32_t row0, uint32_t row1, uint32_t (&a)[4]) {
  constexpr uint32_t kLow = 0x0f0f0f0f;
  a[0] = row0 & kLow;
  a[1] = row1 & kLow;
  a[2] = row0 >> 4 & kLow;
  a[3] = row1 >> 4 & kLow;
}

// The same, times 16.
__device__ inline void SignedNibbles(uint32_t row0, uint32_t row1, uint32_t (&a)[4]) {
  constexpr uint32_t kHigh = 0xf0f0f0f0;
  a[0] = row0 << 4 & kHigh;
  a[1] = row1 << 4 & kHigh;
  a[2] = row0 & kHigh;
  a[3] = row1 & kHigh;
}

// Copying 2 or 4 bytes of a panel to their place.
template <typename T>
__host__ __device__ inline void Move(const uint8_t* from, uint8_t* to) {
  *reinterpret_cast<T*>(to) = *reinterpret_cast<const T*>(from);
}

// Word `i` of `lines`, 16 rows each.
__host__ __device__ inline const uint8_t* LineWord(const uint8_t* lines, int line, int row) {
  return lines + 64 * line + 4 * row;
}

// Codes of two chunks of `chunk_bytes` that begin with 4 lines of nibbles; `flipped`: bits to flip.
__host__ __device__ inline void InterleaveNibbles(const uint8_t* chunks, int chunk_bytes, int lane, uint32_t flipped,
                                                  uint8_t* out) {
  const int r = lane / 4, i = lane % 4;
  for (int j = 0; j < 4; ++j)
    *reinterpret_cast<uint32_t*>(out + 16 * lane + 4 * j) =
        *reinterpret_cast<const uint32_t*>(LineWord(chunks + j / 2 * chunk_bytes, i, r + j % 2 * 8)) ^ flipped;
}

// Bit 4 of the codes of two chunks of 5 bits, behind whose nibbles there is a line of them.
__host__ __device__ inline void InterleaveFifthBits(const uint8_t* chunks, int lane, uint8_t flipped, uint8_t* out) {
  const int r = lane / 4, i = lane % 4;
  for (int b = 0; b < 4; ++b) {
    int bits = 0;
    for (int j = 0; j < 8; ++j) {
      const int line_byte = LineWord(chunks + j / 4 * 320 + 256, 0, r + j / 2 % 2 * 8)[b];
      bits |= (line_byte >> (i + j % 2 * 4) & 1) << j;
    }
    out[4 * lane + b] = static_cast<uint8_t>(bits) ^ flipped;
  }
}

// Adds them to nibbles.
__device__ inline void AddFifthBits(uint32_t bits, int chunk, uint32_t (&a)[4]) {
  constexpr uint32_t kFifth = 0x10101010;
  bits >>= 4 * chunk;
  a[0] |= bits << 4 & kFifth;
  a[2] |= bits << 3 & kFifth;
  a[1] |= bits << 2 & kFifth;
  a[3] |= bits << 1 & kFifth;
}

// The F16 of two groups x 16 rows; `stride` bytes per r in `out`.
__host__ __device__ inline void InterleaveHalves(const uint8_t* in, int r, uint8_t* out) {
  for (int j = 0; j < 4; ++j) Move<uint16_t>(in + 32 * (j / 2) + 2 * (r + j % 2 * 8), out + 2 * j);
}

template <DType type>
struct Tile;

}  // namespace thermocline::cuda
