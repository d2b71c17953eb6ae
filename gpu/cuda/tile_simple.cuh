// Tiles of the types whose blocks have 64 k, with F16 scales (gpu/cuda/tile.cuh).
#pragma once

#include "gpu/cuda/tile_parts.cuh"

namespace thermocline::cuda {

template <>
struct Tile<DType::kQ4_0> {
  static constexpr int kBlockK = 64, kBlockBytes = 576, kFactor = 16;
  static constexpr bool kHasMin = false, kHalves = false;
  uint4 codes;
  uint2 scales;

  // What lane `lane` needs of a unit of 16 rows whose blocks begin at `panel`.
  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* at = panel + static_cast<int64_t>(unit) * kBlockBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    scales = From::template Read<uint2>(at + 512 + lane / 4 * 8);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    chunk == 0 ? SignedNibbles(codes.x, codes.y, a) : SignedNibbles(codes.z, codes.w, a);
  }
  __device__ float Scale(int chunk, int, int row) const { return HalfOf(scales, 2 * chunk + row); }
  __device__ float Min(int, int) const { return 0; }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    InterleaveNibbles(block, 256, lane, 0x88888888, out);
    if (lane < 8) InterleaveHalves(block + 512, lane, out + 512 + 8 * lane);
  }
};

template <>
struct Tile<DType::kQ4_1> {
  static constexpr int kBlockK = 64, kBlockBytes = 640, kFactor = 1;
  static constexpr bool kHasMin = true, kHalves = false;
  uint4 codes, scales_and_mins;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* at = panel + static_cast<int64_t>(unit) * kBlockBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    scales_and_mins = From::template Read<uint4>(at + 512 + lane / 4 * 16);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    chunk == 0 ? Nibbles(codes.x, codes.y, a) : Nibbles(codes.z, codes.w, a);
  }
  __device__ float Scale(int chunk, int, int row) const {
    return HalfOf({scales_and_mins.x, scales_and_mins.y}, 2 * chunk + row);
  }
  __device__ float Min(int chunk, int row) const {
    return HalfOf({scales_and_mins.z, scales_and_mins.w}, 2 * chunk + row);
  }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    InterleaveNibbles(block, 256, lane, 0, out);
    if (lane >= 8) return;
    InterleaveHalves(block + 512, lane, out + 512 + 16 * lane);
    InterleaveHalves(block + 576, lane, out + 520 + 16 * lane);
  }
};

template <>
struct Tile<DType::kQ8_0> {
  static constexpr int kBlockK = 64, kBlockBytes = 1088, kFactor = 1;
  static constexpr bool kHasMin = false, kHalves = false;
  uint4 codes[2];
  uint2 scales;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* at = panel + static_cast<int64_t>(unit) * kBlockBytes;
    for (int chunk = 0; chunk < 2; ++chunk) codes[chunk] = From::template Read<uint4>(at + 512 * chunk + 16 * lane);
    scales = From::template Read<uint2>(at + 1024 + lane / 4 * 8);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    const uint4& four = chunk == 0 ? codes[0] : codes[1];
    a[0] = four.x;
    a[1] = four.y;
    a[2] = four.z;
    a[3] = four.w;
  }
  __device__ float Scale(int chunk, int, int row) const { return HalfOf(scales, 2 * chunk + row); }
  __device__ float Min(int, int) const { return 0; }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    const int r = lane / 4, i = lane % 4;
    for (int chunk = 0; chunk < 2; ++chunk)
      for (int j = 0; j < 4; ++j) {
        const uint8_t* word = LineWord(block + 512 * chunk, i + j / 2 * 4, r + j % 2 * 8);
        *reinterpret_cast<uint32_t*>(out + 512 * chunk + 16 * lane + 4 * j) =
            *reinterpret_cast<const uint32_t*>(word) ^ 0x80808080;
      }
    if (lane < 8) InterleaveHalves(block + 1024, lane, out + 1024 + 8 * lane);
  }
};

template <>
struct Tile<DType::kQ5_0> {
  static constexpr int kBlockK = 64, kBlockBytes = 704, kFactor = 8;
  static constexpr bool kHasMin = false, kHalves = false;
  uint4 codes;
  uint2 scales;
  uint32_t fifth;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* at = panel + static_cast<int64_t>(unit) * kBlockBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    fifth = From::template Read<uint32_t>(at + 512 + 4 * lane);
    scales = From::template Read<uint2>(at + 640 + lane / 4 * 8);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    constexpr uint32_t kSign = 0x80808080, kLow = 0x78787878;
    const uint32_t row0 = chunk == 0 ? codes.x : codes.z, row1 = chunk == 0 ? codes.y : codes.w;
    const uint32_t bits = chunk == 0 ? fifth << 4 : fifth;  // of the chunk: 4 to 7
    a[0] = (row0 << 3 & kLow) | (bits << 3 & kSign);
    a[2] = (row0 >> 1 & kLow) | (bits << 2 & kSign);
    a[1] = (row1 << 3 & kLow) | (bits << 1 & kSign);
    a[3] = (row1 >> 1 & kLow) | (bits & kSign);
  }
  __device__ float Scale(int chunk, int, int row) const { return HalfOf(scales, 2 * chunk + row); }
  __device__ float Min(int, int) const { return 0; }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    InterleaveNibbles(block, 320, lane, 0, out);
    InterleaveFifthBits(block, lane, 0xff, out + 512);
    if (lane < 8) InterleaveHalves(block + 640, lane, out + 640 + 8 * lane);
  }
};

template <>
struct Tile<DType::kQ5_1> {
  static constexpr int kBlockK = 64, kBlockBytes = 768, kFactor = 1;
  static constexpr bool kHasMin = true, kHalves = false;
  uint4 codes, scales_and_mins;
  uint32_t fifth;

  template <typename From>
  __device__ void Load(const uint8_t* panel, int unit, int lane) {
    const uint8_t* at = panel + static_cast<int64_t>(unit) * kBlockBytes;
    codes = From::template Read<uint4>(at + 16 * lane);
    fifth = From::template Read<uint32_t>(at + 512 + 4 * lane);
    scales_and_mins = From::template Read<uint4>(at + 640 + lane / 4 * 16);
  }
  __device__ void Fragment(int chunk, uint32_t (&a)[4]) const {
    chunk == 0 ? Nibbles(codes.x, codes.y, a) : Nibbles(codes.z, codes.w, a);
    AddFifthBits(fifth, chunk, a);
  }
  __device__ float Scale(int chunk, int, int row) const {
    return HalfOf({scales_and_mins.x, scales_and_mins.y}, 2 * chunk + row);
  }
  __device__ float Min(int chunk, int row) const {
    return HalfOf({scales_and_mins.z, scales_and_mins.w}, 2 * chunk + row);
  }

  __host__ __device__ static void Interleave(const uint8_t* block, int lane, uint8_t* out) {
    InterleaveNibbles(block, 320, lane, 0, out);
    InterleaveFifthBits(block, lane, 0, out + 512);
    if (lane >= 8) return;
    InterleaveHalves(block + 640, lane, out + 640 + 16 * lane);
    InterleaveHalves(block + 704, lane, out + 648 + 16 * lane);
  }
};

}  // namespace thermocline::cuda
