// The specification of packing: one row, one block, one code at a time.
#include "cpu/pack.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace thermocline {
namespace {

// One row's worth of one packed block, taken apart.
struct BlockParts {
  std::array<uint8_t, 256> code;
  std::array<uint16_t, 2> scale, min;          // kF16, kBF16
  std::array<uint8_t, 16> sub_scale, sub_min;  // all others; with kF16xU4 both are in sub_scale
  uint16_t d, dmin = 0;
};

uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

// Two ggml blocks of 32 (the second may be past the row's end) as one block of 64. ggml: F16 d | [F16 m] | [32 high
// bits] | 16 bytes with value j in the low and value j + 16 in the high nibble; Q8_0: F16 d | 32 s8.
void SplitSimple(const PackedFormat& format, const uint8_t* src, int n_groups, BlockParts& out) {
  const int source_bytes = Info(format.source).block_bytes;
  for (int g = 0; g < 2; ++g) {
    uint8_t* code = out.code.data() + 32 * g;
    if (g >= n_groups) {
      std::memset(code, 0, 32);
      out.scale[g] = out.min[g] = 0;
      continue;
    }
    const uint8_t* p = src + g * source_bytes;
    out.scale[g] = Load16(p);
    p += 2;
    out.min[g] = format.has_min ? Load16(p) : 0;
    p += format.has_min ? 2 : 0;
    if (format.bits == 8) {
      for (int j = 0; j < 32; ++j) code[j] = p[j] ^ 0x80;
      continue;
    }
    uint32_t high = 0;
    if (format.bits == 5) {
      std::memcpy(&high, p, 4);
      p += 4;
    }
    for (int j = 0; j < 16; ++j) {
      code[j] = (p[j] & 15) | ((high >> j & 1) << 4);
      code[j + 16] = (p[j] >> 4) | ((high >> (j + 16) & 1) << 4);
    }
  }
}

// The same of MXFP4: e, of the scale 2^(e - 128) | 16 bytes. The two smallest scales are subnormal.
void SplitMxfp4(const uint8_t* src, int n_groups, BlockParts& out) {
  for (int g = 0; g < 2; ++g) {
    const uint8_t* p = src + 17 * g;
    const int e = g < n_groups ? p[0] : 0;
    out.scale[g] = static_cast<uint16_t>(g >= n_groups ? 0 : e < 2 ? 0x20 << e : (e - 1) << 7);
    for (int j = 0; j < 32; ++j)
      out.code[32 * g + j] = g < n_groups ? (j < 16 ? p[1 + j] & 15 : p[1 + j - 16] >> 4) : 0;
  }
}

// IQ4_XS: F16 d | 16 bits: the upper 2 of 8 scales | 4 bytes: their lower 4 | 8 x 16 bytes as in SplitSimple.
void SplitIq4Xs(const uint8_t* src, BlockParts& out) {
  out.d = Load16(src);
  const uint16_t high = Load16(src + 2);
  for (int g = 0; g < 8; ++g) {
    const int low = src[4 + g / 2] >> (g % 2 * 4) & 15;
    out.sub_scale[g] = static_cast<uint8_t>((low | (high >> 2 * g & 3) << 4) - 32);
    const uint8_t* p = src + 8 + 16 * g;
    for (int j = 0; j < 32; ++j) out.code[32 * g + j] = j < 16 ? p[j] & 15 : p[j - 16] >> 4;
  }
}

// Q2_K: 16 bytes of 4-bit scales and mins | 64 bytes of bit pairs | F16 d | F16 dmin. Q3_K: 32 bytes of high bits | 64
// bytes of bit pairs | 12 bytes of 6-bit scales | F16 d. In halves of 128 weights.
void SplitK23(const PackedFormat& format, const uint8_t* src, BlockParts& out) {
  const bool three = format.bits == 3;
  const uint8_t* low = src + (three ? 32 : 16);
  for (int i = 0; i < 256; ++i) {
    const int j = i % 32, g = i / 32;
    const int high = three ? src[j] >> g & 1 : 0;
    out.code[i] = static_cast<uint8_t>((low[i / 128 * 32 + j] >> 2 * (g % 4) & 3) | high << 2);
  }
  if (!three) {
    std::memcpy(out.sub_scale.data(), src, 16);
    out.d = Load16(src + 80);
    out.dmin = Load16(src + 82);
    return;
  }
  const uint8_t* s = src + 96;
  for (int g = 0; g < 16; ++g)
    out.sub_scale[g] = static_cast<uint8_t>(((s[g % 8] >> g / 8 * 4 & 15) | (s[8 + g % 4] >> g / 4 * 2 & 3) << 4) - 32);
  out.d = Load16(src + 108);
}

// Q4_K, Q5_K: F16 d | F16 dmin | 12 bytes of 6-bit scales and mins | [32 bytes of high bits] | 128 bytes of nibbles.
void SplitK45(const PackedFormat& format, const uint8_t* src, BlockParts& out) {
  out.d = Load16(src);
  out.dmin = Load16(src + 2);
  const uint8_t* s = src + 4;
  for (int g = 0; g < 8; ++g) {
    if (g < 4) {
      out.sub_scale[g] = s[g] & 63;
      out.sub_min[g] = s[g + 4] & 63;
    } else {
      out.sub_scale[g] = (s[g + 4] & 15) | (s[g - 4] >> 6 << 4);
      out.sub_min[g] = (s[g + 4] >> 4) | (s[g] >> 6 << 4);
    }
  }
  const uint8_t* high = src + 16;
  const uint8_t* low = format.bits == 5 ? high + 32 : high;
  for (int g = 0; g < 8; ++g)
    for (int j = 0; j < 32; ++j) {
      const uint8_t byte = low[g / 2 * 32 + j];
      uint8_t code = g % 2 ? byte >> 4 : byte & 15;
      if (format.bits == 5) code |= (high[j] >> g & 1) << 4;
      out.code[32 * g + j] = code;
    }
}

// Q6_K: 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 s8 scales | F16 d, in two halves of 128 weights.
void SplitK6(const uint8_t* src, BlockParts& out) {
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = src + 64 * half;
    const uint8_t* high = src + 128 + 32 * half;
    uint8_t* code = out.code.data() + 128 * half;
    for (int j = 0; j < 32; ++j)
      for (int q = 0; q < 4; ++q) {
        const uint8_t byte = low[j + 32 * (q % 2)];
        code[32 * q + j] = (q < 2 ? byte & 15 : byte >> 4) | ((high[j] >> 2 * q & 3) << 4);
      }
  }
  std::memcpy(out.sub_scale.data(), src + 192, 16);
  out.d = Load16(src + 208);
}

void Split(const PackedFormat& format, const uint8_t* row, int64_t k, int64_t block, BlockParts& out) {
  const DTypeInfo& info = Info(format.source);
  const int64_t per_block = format.block_k() / info.block;
  const int n_left = static_cast<int>(std::min<int64_t>(per_block, k / info.block - per_block * block));
  const uint8_t* src = row + block * per_block * info.block_bytes;
  switch (format.source) {
    case DType::kMXFP4: return SplitMxfp4(src, n_left, out);
    case DType::kIQ4_XS: return SplitIq4Xs(src, out);
    case DType::kQ2_K:
    case DType::kQ3_K: return SplitK23(format, src, out);
    case DType::kQ4_K:
    case DType::kQ5_K: return SplitK45(format, src, out);
    case DType::kQ6_K: return SplitK6(src, out);
    default: return SplitSimple(format, src, n_left, out);
  }
}

// Writes row r of one chunk of codes; the chunk was zeroed before.
void WriteCodes(int bits, const uint8_t* code, int r, uint8_t* chunk) {
  const bool pairs = bits < 4;
  for (int q = 0; q < 8; ++q) {
    for (int j = 0; j < 4; ++j) {
      const uint8_t c = code[4 * q + j];
      const int at = 4 * r + j;
      if (bits == 8) {
        chunk[64 * q + at] = c;
        continue;
      }
      if (pairs)
        chunk[64 * (q / 4) + at] |= (c & 3) << 2 * (q % 4);
      else
        chunk[64 * (q % 4) + at] |= (c & 15) << (q < 4 ? 0 : 4);
      if (bits == 3) chunk[128 + at] |= (c >> 2) << q;
      if (bits == 5) chunk[256 + at] |= (c >> 4) << q;
      if (bits == 6) chunk[256 + 64 * (q / 4) + at] |= (c >> 4) << 2 * (q % 4);
    }
  }
}

void Store16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

void WriteScales(const PackedFormat& format, const BlockParts& parts, int r, uint8_t* scales) {
  if (!format.has_super_scales()) {
    for (int g = 0; g < 2; ++g) {
      Store16(scales + 32 * g + 2 * r, parts.scale[g]);
      if (format.has_min) Store16(scales + 64 + 32 * g + 2 * r, parts.min[g]);
    }
    return;
  }
  const int n_groups = format.block_k() / format.group;
  for (int g = 0; g < n_groups; ++g) {
    scales[16 * g + r] = parts.sub_scale[g];
    if (format.scale == ScaleKind::kF16xU6) scales[16 * (n_groups + g) + r] = parts.sub_min[g];
  }
  uint8_t* super = scales + format.scale_bytes() - 64;
  Store16(super + 2 * r, parts.d);
  Store16(super + 32 + 2 * r, parts.dmin);
}

}  // namespace

void PackPanelReference(const PackedFormat& format, const uint8_t* source, int64_t row_bytes, int n_rows, int64_t k,
                        uint8_t* panel) {
  const int64_t n_blocks = (k + format.block_k() - 1) / format.block_k();
  std::memset(panel, 0, n_blocks * format.block_bytes());
  for (int64_t b = 0; b < n_blocks; ++b, panel += format.block_bytes())
    for (int r = 0; r < n_rows; ++r) {
      BlockParts parts;
      Split(format, source + r * row_bytes, k, b, parts);
      for (int c = 0; c < format.block_k() / kChunk; ++c)
        WriteCodes(format.bits, parts.code.data() + kChunk * c, r, panel + c * format.chunk_bytes());
      WriteScales(format, parts, r, panel + format.block_bytes() - format.scale_bytes());
    }
}

}  // namespace thermocline
