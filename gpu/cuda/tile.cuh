// How a lane of a warp reads one unit, 16 rows x 64 k, of each weight type; and how panels become units.
//
// Lane 4r + i has rows r and r + 8, called row 0 and 1 below. "w(c, row, i)" is the word that line i of chunk c of the
// panel has for that row: of 4-bit types quads i and i + 4.
//
//   Q4_0   unit [lane: w(0,0,i) w(0,1,i) w(1,0,i) w(1,1,i)], less 8 in two's complement, then [r: F16 scales of (0,0)
//          (0,1) (1,0) (1,1)]
//   Q4_1   the same, but codes as they are, and [r: 4 scales, then 4 mins]
//   Q8_0   unit [chunk][lane: quad i of row 0, of row 1, quad i + 4 of row 0, of row 1], signed; scales as Q4_0
//   Q4_K   block [unit: codes as Q4_1][unit: [r: u8 scales of (0,0) (0,1) (1,0) (1,1), 4 u8 mins]]
//          [r: F16 d of row 0, of row 1, dmin of row 0, of row 1]
//   Q5_0, Q5_1, Q5_K   as Q4_0, Q4_1, Q4_K, but behind the codes of each unit are [lane: bit 4c + 2row + half of its
//          bytes: bit 4 of chunk c, row, quad i or (half 1) i + 4]; of Q5_0 less 16 in two's complement
//   Q6_K   less 32 in two's complement: block [unit: lower 4 bits as Q4_1, then [lane: of chunk 0, 1 a word of bits 4
//   and 5: bits 0-1 of a byte: row 0,
//          quad i; 2-3: row 0, quad i + 4; 4-7: row 1]][unit: [r: s8 scales of halves 0..3 of the 64 k of row 0, then
//          of row 1]][r: F16 d of row 0, of row 1][32 bytes unused]
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

// f(Tile<type>{}) for a type that has one.
template <typename F>
void WithTile(DType type, const F& f) {
  switch (type) {
    case DType::kQ4_0: f(Tile<DType::kQ4_0>{}); break;
    case DType::kQ4_1: f(Tile<DType::kQ4_1>{}); break;
    case DType::kQ8_0: f(Tile<DType::kQ8_0>{}); break;
    case DType::kQ5_0: f(Tile<DType::kQ5_0>{}); break;
    case DType::kQ5_1: f(Tile<DType::kQ5_1>{}); break;
    case DType::kQ5_K: f(Tile<DType::kQ5_K>{}); break;
    case DType::kQ4_K: f(Tile<DType::kQ4_K>{}); break;
    case DType::kQ6_K: f(Tile<DType::kQ6_K>{}); break;
    default: break;
  }
}

}  // namespace thermocline::cuda
