// Tiles of the types whose blocks have 256 k, with small scales under F16 ones (gpu/cuda/tile.cuh).
#pragma once

#include "gpu/cuda/tile_parts.cuh"

namespace thermocline::cuda {

// Q4_K and Q5_K.
template <int kBits>
struct TileK {
  static constexpr int kBlockK = 256, kUnitBytes = 128 * kBits, kFactor = 1;
  static constexpr int kScales = 4 * kUnitBytes, kSuper = kScales + 256, kBlockBytes = kSuper + 64;
  static constexpr bool kHasMin = true, kHalves = false;
  uint4 codes;
  uint2 scales_and_mins, super;
  uint32_t fifth;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* block = panel + static_cast<int64_t>(unit / 4) * kBlockBytes;
    const uint8_t* at = block + unit % 4 * kUnitBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    if (kBits == 5) fifth = From::template Read<uint32_t>(at + 512 + 4 * lane);
    scales_and_mins = From::template Read<uint2>(block + kScales + unit % 4 * 64 + lane / 4 * 8);
    super = From::template Read<uint2>(block + kSuper + lane / 4 * 8);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    chunk == 0 ? Nibbles(codes.x, codes.y, a) : Nibbles(codes.z, codes.w, a);
    if (kBits == 5) AddFifthBits(fifth, chunk, a);
  }
  __device__ float Scale(int chunk, int, int row) const {
    return HalfOf(super, row) * static_cast<float>(scales_and_mins.x >> 8 * (2 * chunk + row) & 255);
  }
  __device__ float Min(int chunk, int row) const {
    return -HalfOf(super, 2 + row) * static_cast<float>(scales_and_mins.y >> 8 * (2 * chunk + row) & 255);
  }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    constexpr int kChunkBytes = 64 * kBits;
    for (int unit = 0; unit < 4; ++unit) {
      const uint8_t* chunks = block + 2 * kChunkBytes * unit;
      InterleaveNibbles(chunks, kChunkBytes, lane, 0, out + kUnitBytes * unit);
      if (kBits == 5) InterleaveFifthBits(chunks, lane, 0, out + kUnitBytes * unit + 512);
      if (lane >= 8) continue;
      for (int j = 0; j < 8; ++j) {  // 4 scales, 4 mins
        const int group = 2 * unit + j % 4 / 2, row = lane + j % 2 * 8;
        out[kScales + 64 * unit + 8 * lane + j] = block[kScales + j / 4 * 128 + 16 * group + row];
      }
    }
    if (lane < 8) InterleaveHalves(block + kSuper, lane, out + kSuper + 8 * lane);
  }
};
template <>
struct Tile<DType::kQ4_K> : TileK<4> {};
template <>
struct Tile<DType::kQ5_K> : TileK<5> {};

template <>
struct Tile<DType::kQ6_K> {
  static constexpr int kBlockK = 256, kBlockBytes = 3392, kFactor = 4;
  static constexpr bool kHasMin = false, kHalves = true;
  static constexpr int kUnitBytes = 768, kScales = 3072, kSuper = 3328;
  uint4 codes;
  uint2 high, scales;
  uint32_t super;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* block = panel + static_cast<int64_t>(unit / 4) * kBlockBytes;
    const uint8_t* at = block + unit % 4 * kUnitBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    high = From::template Read<uint2>(at + 512 + 8 * lane);
    scales = From::template Read<uint2>(block + kScales + unit % 4 * 64 + lane / 4 * 8);
    super = From::template Read<uint32_t>(block + kSuper + lane / 4 * 4);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    // Bits 7, 6 are the high ones, bits 5 to 2 the low ones.
    constexpr uint32_t kHigh = 0xc0c0c0c0, kLow = 0x3c3c3c3c;
    const uint32_t row0 = chunk == 0 ? codes.x : codes.z, row1 = chunk == 0 ? codes.y : codes.w;
    const uint32_t bits = chunk == 0 ? high.x : high.y;
    a[0] = (row0 << 2 & kLow) | (bits << 6 & kHigh);
    a[1] = (row1 << 2 & kLow) | (bits << 2 & kHigh);
    a[2] = (row0 >> 2 & kLow) | (bits << 4 & kHigh);
    a[3] = (row1 >> 2 & kLow) | (bits & kHigh);
  }
  __device__ float Scale(int chunk, int half, int row) const {
    const uint32_t four = row == 0 ? scales.x : scales.y;
    const int8_t scale = static_cast<int8_t>(four >> 8 * (2 * chunk + half));
    return (row == 0 ? LowHalf(super) : HighHalf(super)) * static_cast<float>(scale);
  }
  __device__ float Min(int, int) const { return 0; }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    const int r = lane / 4, i = lane % 4;
    for (int unit = 0; unit < 4; ++unit) {
      const uint8_t* chunks = block + 2 * 384 * unit;
      InterleaveNibbles(chunks, 384, lane, 0, out + kUnitBytes * unit);
      for (int chunk = 0; chunk < 2; ++chunk)
        for (int b = 0; b < 4; ++b) {
          int bits = 0;
          for (int row = 0; row < 2; ++row)
            for (int j = 0; j < 2; ++j)  // quad i, quad i + 4
              bits |= (chunks[384 * chunk + 256 + 64 * j + 4 * (r + 8 * row) + b] >> 2 * i & 3) << (4 * row + 2 * j);
          out[kUnitBytes * unit + 512 + 8 * lane + 4 * chunk + b] = static_cast<uint8_t>(bits ^ 0xaa);  // less 32
        }
      if (lane >= 8) continue;
      for (int j = 0; j < 8; ++j)  // 4 of row 0, 4 of row 1
        out[kScales + 64 * unit + 8 * lane + j] = block[kScales + 16 * (4 * unit + j % 4) + lane + j / 4 * 8];
    }
    if (lane >= 8) return;
    for (int row = 0; row < 2; ++row)
      Move<uint16_t>(block + kSuper + 2 * (lane + 8 * row), out + kSuper + 4 * lane + 2 * row);
    Move<uint32_t>(block + kSuper + 32 + 4 * lane, out + kSuper + 32 + 4 * lane);
  }
};

}  // namespace thermocline::cuda
