// The packed format: weights as kernels read them, in panels of 16 output rows, without loss of what the file holds.
//
// A matrix (N, K) becomes ceil(N / 16) panels; a panel is a run of blocks along K; a block is a run of chunks of 32 k,
// followed by its scales. One 64-byte line of codes holds 16 rows x 4 k (row-major: byte 4 * row + k), which is at once
// the operand of vpdpbusd and the rows of an AMX B tile. Within a chunk, quad q is k = 4q .. 4q+3:
//
//   2 bits   2 lines: line i, bits 2j and 2j+1 = quad 4i + j
//   3 bits   the same, then 1 line: bit q of each byte is bit 2 of quad q
//   4 bits   4 lines: line i = quad i in the low nibbles, quad i + 4 in the high nibbles
//   5 bits   the same, then 1 line: bit q of each byte is bit 4 of quad q
//   6 bits   the same, then 2 lines: line i, bits 2j and 2j+1 are bits 4 and 5 of quad 4i + j
//   8 bits   8 lines: line q = quad q
//
// Codes are unsigned; weight = scale * code + min, where min = -zero_point * scale for the symmetric types. Types with
// a codebook have indices in the panels, and it has their codes.
//
//   ScaleKind::kF16      block of 64: [2 chunks][2 x 16 F16 scales][2 x 16 F16 mins, if the type has them]
//   ScaleKind::kBF16     block of 64: [2 chunks][2 x 16 BF16 scales]
//   ScaleKind::kF16xU4   block of 256: [8 chunks][16 x 16 u4 scales, mins in the high nibbles][16 F16 d][16 F16 dmin]
//   ScaleKind::kF16xU6   block of 256: [8 chunks][8 x 16 u8 scales][8 x 16 u8 mins][16 F16 d][16 F16 dmin]
//   ScaleKind::kF16xS8   block of 256: [8 chunks][256 / group x 16 s8 scales][16 F16 d][32 bytes unused]
//
// with scale = d * u4 (or u8, s8) and min = -dmin * u4 (or u8). Rows past N and k past K have zero scales. Every block
// is a multiple of 64 bytes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "models/dtype.h"

namespace thermocline {

// To be raised when any byte of any panel changes: files of packed weights (cpu/packed_file.h) are then made anew.
inline constexpr uint64_t kPackedLayoutVersion = 1;

inline constexpr int kPanelRows = 16;
inline constexpr int kChunk = 32;  // k per chunk

enum class ScaleKind : uint8_t { kF16, kBF16, kF16xU4, kF16xU6, kF16xS8 };
using Codebook = std::array<uint8_t, 16>;

struct PackedFormat {
  DType source;  // the file type it holds without loss
  const char* name;
  int bits;   // per code: 2, 3, 4, 5, 6, 8
  int group;  // weights sharing a scale: 16 or 32
  ScaleKind scale;
  bool has_min;  // explicit mins; otherwise the zero point
  int zero_point;
  const Codebook* codebook = nullptr;  // of 4-bit indices

  // d, and dmin if it has mins, over the scales of a block.
  bool has_super_scales() const { return scale != ScaleKind::kF16 && scale != ScaleKind::kBF16; }
  int max_code() const { return codebook ? *std::ranges::max_element(*codebook) : (1 << bits) - 1; }
  int block_k() const { return has_super_scales() ? 256 : 64; }
  int chunk_bytes() const { return 64 * bits; }
  int scale_bytes() const {  // per block
    if (!has_super_scales()) return has_min ? 128 : 64;
    return 16 * (block_k() / group) * (scale == ScaleKind::kF16xU6 ? 2 : 1) + 64;
  }
  int block_bytes() const { return block_k() / kChunk * chunk_bytes() + scale_bytes(); }
};

std::span<const PackedFormat> PackedFormats();
const PackedFormat* FindPackedFormat(DType source);  // nullptr: a float type, kept as it is

// One row's group of one packed block, taken apart: weight = scale * code + min.
struct PackedGroup {
  float scale, min;
  uint8_t code[kChunk];  // (format.group)
};
PackedGroup ReadGroup(const PackedFormat& format, const uint8_t* block, int row, int group);

// Bytes of a matrix (n, k) in panels; of a float type, of its rows, PackedStride() apart.
int64_t PackedBytes(DType source, int64_t n, int64_t k);
// From one row of a float type to the next: a multiple of 64.
int64_t PackedStride(DType source, int64_t k);

}  // namespace thermocline
