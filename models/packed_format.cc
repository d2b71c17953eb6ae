#include "models/packed_format.h"

#include <cstring>

namespace thermocline {
namespace {

// Codes are the values with the zero point added.
constexpr Codebook WithZeroPoint(const std::array<int8_t, 16>& values, int zero_point) {
  Codebook codes = {};
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(values[i] + zero_point);
  return codes;
}
constexpr Codebook kIq4Codes = WithZeroPoint(kIq4Values, 128), kMxfp4Codes = WithZeroPoint(kMxfp4Values, 16);

constexpr PackedFormat kFormats[] = {
    {DType::kQ4_0, "Q4_0", 4, 32, ScaleKind::kF16, false, 8},
    {DType::kQ4_1, "Q4_1", 4, 32, ScaleKind::kF16, true, 0},
    {DType::kQ5_0, "Q5_0", 5, 32, ScaleKind::kF16, false, 16},
    {DType::kQ5_1, "Q5_1", 5, 32, ScaleKind::kF16, true, 0},
    {DType::kQ8_0, "Q8_0", 8, 32, ScaleKind::kF16, false, 128},
    {DType::kQ2_K, "Q2_K", 2, 16, ScaleKind::kF16xU4, true, 0},
    {DType::kQ3_K, "Q3_K", 3, 16, ScaleKind::kF16xS8, false, 4},
    {DType::kQ4_K, "Q4_K", 4, 32, ScaleKind::kF16xU6, true, 0},
    {DType::kQ5_K, "Q5_K", 5, 32, ScaleKind::kF16xU6, true, 0},
    {DType::kQ6_K, "Q6_K", 6, 16, ScaleKind::kF16xS8, false, 32},
    {DType::kIQ4_NL, "IQ4_NL", 4, 32, ScaleKind::kF16, false, 128, &kIq4Codes},
    {DType::kIQ4_XS, "IQ4_XS", 4, 32, ScaleKind::kF16xS8, false, 128, &kIq4Codes},
    {DType::kMXFP4, "MXFP4", 4, 32, ScaleKind::kBF16, false, 16, &kMxfp4Codes},
};

uint16_t Load16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

// The 4 codes of row r, quad q of a chunk.
void ReadQuad(const PackedFormat& format, const uint8_t* chunk, int r, int q, uint8_t* code) {
  const int bits = format.bits;
  const bool pairs = bits < 4;  // in the low plane
  const int low_bits = bits == 8 ? 8 : pairs ? 2 : 4;
  const int low_line = bits == 8 ? q : pairs ? q / 4 : q % 4;
  const int low_shift = bits == 8 ? 0 : pairs ? 2 * (q % 4) : q / 4 * 4;
  const uint8_t* low = chunk + 64 * low_line + 4 * r;
  const uint8_t* high = chunk + 64 * low_bits + 64 * (bits == 6 ? q / 4 : 0) + 4 * r;
  for (int j = 0; j < 4; ++j) {
    code[j] = low[j] >> low_shift & ((1 << low_bits) - 1);
    if (bits == 3 || bits == 5) code[j] |= (high[j] >> q & 1) << low_bits;
    if (bits == 6) code[j] |= (high[j] >> 2 * (q % 4) & 3) << low_bits;
    if (format.codebook) code[j] = (*format.codebook)[code[j]];
  }
}

// Scale and min of row r's group.
void ReadScales(const PackedFormat& format, const uint8_t* block, int r, int group, PackedGroup& out) {
  const uint8_t* scales = block + format.block_bytes() - format.scale_bytes();
  const int n_groups = format.block_k() / format.group;
  const uint8_t* super = block + format.block_bytes() - 64;
  const auto half = [&](const uint8_t* p) { return HalfToFloat(Load16(p + 2 * r)); };
  const auto byte = [&](int i) { return scales[16 * i + r]; };
  switch (format.scale) {
    case ScaleKind::kF16: out.scale = half(scales + 32 * group); break;
    case ScaleKind::kBF16: out.scale = Bf16ToFloat(Load16(scales + 32 * group + 2 * r)); break;
    case ScaleKind::kF16xU4: out.scale = half(super) * (byte(group) & 15); break;
    case ScaleKind::kF16xU6: out.scale = half(super) * byte(group); break;
    case ScaleKind::kF16xS8: out.scale = half(super) * static_cast<int8_t>(byte(group)); break;
  }
  if (!format.has_min)
    out.min = -format.zero_point * out.scale;
  else if (format.scale == ScaleKind::kF16)
    out.min = half(scales + 64 + 32 * group);
  else
    out.min = -half(super + 32) * (format.scale == ScaleKind::kF16xU4 ? byte(group) >> 4 : byte(n_groups + group));
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
  for (int k = 0; k < format.group; k += 4) ReadQuad(format, chunk, r, (first + k) % kChunk / 4, out.code + k);
  return out;
}

int64_t PackedStride(DType source, int64_t k) { return (k * Info(source).block_bytes + 63) / 64 * 64; }

int64_t PackedBytes(DType source, int64_t n, int64_t k) {
  const PackedFormat* format = FindPackedFormat(source);
  if (!format) return PackedStride(source, k) * n;
  const int64_t blocks = (k + format->block_k() - 1) / format->block_k();
  return (n + kPanelRows - 1) / kPanelRows * blocks * format->block_bytes();
}

}  // namespace thermocline
