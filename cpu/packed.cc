#include "cpu/packed.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

constexpr PackedFormat kFormats[] = {
    {DType::kQ4_0, "Q4_0", 4, 32, ScaleKind::kF16, false, 8},
    {DType::kQ4_1, "Q4_1", 4, 32, ScaleKind::kF16, true, 0},
    {DType::kQ5_0, "Q5_0", 5, 32, ScaleKind::kF16, false, 16},
    {DType::kQ5_1, "Q5_1", 5, 32, ScaleKind::kF16, true, 0},
    {DType::kQ8_0, "Q8_0", 8, 32, ScaleKind::kF16, false, 128},
    {DType::kQ4_K, "Q4_K", 4, 32, ScaleKind::kF16xU6, true, 0},
    {DType::kQ5_K, "Q5_K", 5, 32, ScaleKind::kF16xU6, true, 0},
    {DType::kQ6_K, "Q6_K", 6, 16, ScaleKind::kF16xS8, false, 32},
};

// One row's worth of one packed block, taken apart.
struct BlockParts {
  std::array<uint8_t, 256> code;
  std::array<uint16_t, 2> scale, min;          // kF16
  std::array<uint8_t, 16> sub_scale, sub_min;  // kF16xU6, kF16xS8
  uint16_t d, dmin;
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
  const int source_bytes = Info(format.source).block_bytes;
  if (format.scale == ScaleKind::kF16) {
    const int n_groups = static_cast<int>(std::min<int64_t>(2, k / 32 - 2 * block));
    SplitSimple(format, row + 2 * block * source_bytes, n_groups, out);
  } else if (format.scale == ScaleKind::kF16xU6) {
    SplitK45(format, row + block * source_bytes, out);
  } else {
    SplitK6(row + block * source_bytes, out);
  }
}

// Writes row r of one chunk of codes; the chunk was zeroed before.
void WriteCodes(int bits, const uint8_t* code, int r, uint8_t* chunk) {
  for (int q = 0; q < 8; ++q) {
    for (int j = 0; j < 4; ++j) {
      const uint8_t c = code[4 * q + j];
      const int at = 4 * r + j;
      if (bits == 8) {
        chunk[64 * q + at] = c;
        continue;
      }
      chunk[64 * (q % 4) + at] |= (c & 15) << (q < 4 ? 0 : 4);
      if (bits == 5) chunk[256 + at] |= (c >> 4) << q;
      if (bits == 6) chunk[256 + 64 * (q / 4) + at] |= (c >> 4) << 2 * (q % 4);
    }
  }
}

// The 4 codes of row r, quad q of a chunk.
void ReadQuad(int bits, const uint8_t* chunk, int r, int q, uint8_t* code) {
  const uint8_t* low = chunk + 64 * (bits == 8 ? q : q % 4) + 4 * r;
  const uint8_t* high = chunk + 256 + 64 * (bits == 6 ? q / 4 : 0) + 4 * r;
  for (int j = 0; j < 4; ++j) {
    if (bits == 8) {
      code[j] = low[j];
      continue;
    }
    code[j] = low[j] >> (q < 4 ? 0 : 4) & 15;
    if (bits == 5) code[j] |= (high[j] >> q & 1) << 4;
    if (bits == 6) code[j] |= (high[j] >> 2 * (q % 4) & 3) << 4;
  }
}

void Store16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, 2); }

void WriteScales(const PackedFormat& format, const BlockParts& parts, int r, uint8_t* scales) {
  if (format.scale == ScaleKind::kF16) {
    for (int g = 0; g < 2; ++g) {
      Store16(scales + 32 * g + 2 * r, parts.scale[g]);
      if (format.has_min) Store16(scales + 64 + 32 * g + 2 * r, parts.min[g]);
    }
    return;
  }
  const int n_groups = format.block_k() / format.group;
  for (int g = 0; g < n_groups; ++g) {
    scales[16 * g + r] = parts.sub_scale[g];
    if (format.has_min) scales[16 * (n_groups + g) + r] = parts.sub_min[g];
  }
  uint8_t* super = scales + 16 * n_groups * (format.has_min ? 2 : 1);
  Store16(super + 2 * r, parts.d);
  if (format.has_min) Store16(super + 32 + 2 * r, parts.dmin);
}

// Scale and min of row r's group.
void ReadScales(const PackedFormat& format, const uint8_t* block, int r, int group, PackedGroup& out) {
  const uint8_t* scales = block + format.block_bytes() - format.scale_bytes();
  if (format.scale == ScaleKind::kF16) {
    out.scale = HalfToFloat(Load16(scales + 32 * group + 2 * r));
    out.min = format.has_min ? HalfToFloat(Load16(scales + 64 + 32 * group + 2 * r)) : -format.zero_point * out.scale;
    return;
  }
  const int n_groups = format.block_k() / format.group;
  const uint8_t* super = scales + 16 * n_groups * (format.has_min ? 2 : 1);
  const float d = HalfToFloat(Load16(super + 2 * r));
  const uint8_t sub = scales[16 * group + r];
  if (format.scale == ScaleKind::kF16xS8) {
    out.scale = d * static_cast<int8_t>(sub);
    out.min = -format.zero_point * out.scale;
  } else {
    out.scale = d * sub;
    out.min = -HalfToFloat(Load16(super + 32 + 2 * r)) * scales[16 * (n_groups + group) + r];
  }
}

}  // namespace

std::span<const PackedFormat> PackedFormats() { return kFormats; }

const PackedFormat* FindPackedFormat(DType source) {
  for (const PackedFormat& format : kFormats)
    if (format.source == source) return &format;
  return nullptr;
}

PackedGroup ReadGroup(const PackedFormat& format, const uint8_t* block, int r, int group) {
  PackedGroup out;
  ReadScales(format, block, r, group, out);
  const int first = group * format.group;
  const uint8_t* chunk = block + first / kChunk * format.chunk_bytes();
  for (int k = 0; k < format.group; k += 4) ReadQuad(format.bits, chunk, r, (first + k) % kChunk / 4, out.code + k);
  return out;
}

int64_t PackedMatrix::BytesFor(DType source, int64_t n, int64_t k) {
  if (const PackedFormat* format = FindPackedFormat(source)) {
    const int64_t blocks = (k + format->block_k() - 1) / format->block_k();
    return (n + kPanelRows - 1) / kPanelRows * blocks * format->block_bytes();
  }
  return (k * Info(source).block_bytes + 63) / 64 * 64 * n;
}

PackedMatrix::PackedMatrix(DType source, int64_t n, int64_t k)
    : format_(FindPackedFormat(source)), type_(source), n_(n), k_(k), data_(BytesFor(source, n, k), "the weights") {
  CHECK(k % Info(source).block == 0);
  if (!format_) stride_bytes_ = (k * Info(source).block_bytes + 63) / 64 * 64;
}

void PackedMatrix::PackPanels(const uint8_t* source, int64_t begin, int64_t end) {
  const DTypeInfo& info = Info(type_);
  const int64_t row_bytes = k_ / info.block * info.block_bytes;
  for (int64_t p = begin; p < end; ++p) {
    const int n_rows = static_cast<int>(std::min<int64_t>(kPanelRows, n_ - p * kPanelRows));
    if (!format_) {
      for (int64_t i = p * kPanelRows; i < p * kPanelRows + n_rows; ++i)
        std::memcpy(data_.data() + i * stride_bytes_, source + i * row_bytes, row_bytes);
      continue;
    }
    uint8_t* block = data_.data() + p * panel_bytes();  // fresh memory: zeros
    for (int64_t b = 0; b < n_blocks(); ++b, block += format_->block_bytes()) {
      for (int r = 0; r < n_rows; ++r) {
        BlockParts parts;
        Split(*format_, source + (p * kPanelRows + r) * row_bytes, k_, b, parts);
        for (int c = 0; c < format_->block_k() / kChunk; ++c)
          WriteCodes(format_->bits, parts.code.data() + kChunk * c, r, block + c * format_->chunk_bytes());
        WriteScales(*format_, parts, r, block + format_->block_bytes() - format_->scale_bytes());
      }
    }
  }
}

void PackedMatrix::DequantizeRow(int64_t n, float* out) const {
  CHECK(n >= 0 && n < n_);
  if (!format_) {
    Dequantize(type_, row(n), k_, out);
    return;
  }
  const int r = static_cast<int>(n % kPanelRows);
  const uint8_t* block = panel(n / kPanelRows);
  for (int64_t k0 = 0; k0 < k_; k0 += format_->block_k(), block += format_->block_bytes())
    for (int g = 0; g < format_->block_k() / format_->group && k0 + g * format_->group < k_; ++g) {
      const PackedGroup w = ReadGroup(*format_, block, r, g);
      for (int j = 0; j < format_->group; ++j)
        out[k0 + g * format_->group + j] =
            format_->has_min ? w.scale * w.code[j] + w.min : w.scale * (w.code[j] - format_->zero_point);
    }
}

}  // namespace thermocline
