// The block layouts are ggml's (ggml/src/ggml-common.h); the float operations are in the order of ggml's own
// dequantization, so that results are equal bit for bit.
#include "models/dtype.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "models/check.h"

namespace thermocline {
namespace {

constexpr DTypeInfo kInfos[] = {
    {DType::kF32, "F32", 1, 4},       {DType::kF16, "F16", 1, 2},         {DType::kBF16, "BF16", 1, 2},
    {DType::kQ4_0, "Q4_0", 32, 18},   {DType::kQ4_1, "Q4_1", 32, 20},     {DType::kQ5_0, "Q5_0", 32, 22},
    {DType::kQ5_1, "Q5_1", 32, 24},   {DType::kQ8_0, "Q8_0", 32, 34},     {DType::kQ2_K, "Q2_K", 256, 84},
    {DType::kQ3_K, "Q3_K", 256, 110}, {DType::kQ4_K, "Q4_K", 256, 144},   {DType::kQ5_K, "Q5_K", 256, 176},
    {DType::kQ6_K, "Q6_K", 256, 210}, {DType::kIQ4_NL, "IQ4_NL", 32, 18}, {DType::kIQ4_XS, "IQ4_XS", 256, 136},
    {DType::kMXFP4, "MXFP4", 32, 17},
};

// Indexed by ggml's type id; empty where ggml has removed the type.
constexpr std::string_view kGgmlNames[] = {
    "F32",        "F16",        "Q4_0",       "Q4_1",  "Q4_2",     "Q4_3",     "Q5_0",     "Q5_1",    "Q8_0",
    "Q8_1",       "Q2_K",       "Q3_K",       "Q4_K",  "Q5_K",     "Q6_K",     "Q8_K",     "IQ2_XXS", "IQ2_XS",
    "IQ3_XXS",    "IQ1_S",      "IQ4_NL",     "IQ3_S", "IQ2_S",    "IQ4_XS",   "I8",       "I16",     "I32",
    "I64",        "F64",        "IQ1_M",      "BF16",  "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0",   "TQ2_0",
    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4",    "Q1_0",     "Q2_0",
};

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float LoadHalf(const uint8_t* p) { return HalfToFloat(Load<uint16_t>(p)); }

// d | 16 bytes: byte j holds weight j (low nibble) and j + 16 (high nibble), offset by 8.
void DequantizeQ4_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const uint8_t* qs = block + 2;
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((qs[j] & 15) - 8) * d;
    out[j + 16] = static_cast<float>((qs[j] >> 4) - 8) * d;
  }
}

// d | m | 16 bytes as in Q4_0, without the offset: q * d + m.
void DequantizeQ4_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const uint8_t* qs = block + 4;
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(qs[j] & 15) * d + m;
    out[j + 16] = static_cast<float>(qs[j] >> 4) * d + m;
  }
}

// The fifth bit of weight i is bit i of `high`.
int Fifth(uint32_t high, int i) { return static_cast<int>((high >> i) & 1) << 4; }

// d | 32 high bits | 16 bytes, offset by 16.
void DequantizeQ5_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const auto high = Load<uint32_t>(block + 2);
  const uint8_t* qs = block + 6;
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(((qs[j] & 15) | Fifth(high, j)) - 16) * d;
    out[j + 16] = static_cast<float>(((qs[j] >> 4) | Fifth(high, j + 16)) - 16) * d;
  }
}

// d | m | 32 high bits | 16 bytes.
void DequantizeQ5_1(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float m = LoadHalf(block + 2);
  const auto high = Load<uint32_t>(block + 4);
  const uint8_t* qs = block + 8;
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((qs[j] & 15) | Fifth(high, j)) * d + m;
    out[j + 16] = static_cast<float>((qs[j] >> 4) | Fifth(high, j + 16)) * d + m;
  }
}

// d | 32 signed bytes.
void DequantizeQ8_0(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(block[2 + j])) * d;
}

// d | 16 bytes as in Q4_0, each nibble an index.
void DequantizeIQ4_NL(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const uint8_t* qs = block + 2;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(kIq4Values[qs[j] & 15]);
    out[j + 16] = d * static_cast<float>(kIq4Values[qs[j] >> 4]);
  }
}

// Exponent e of the scale 2^(e - 128) | 16 bytes as in IQ4_NL.
void DequantizeMXFP4(const uint8_t* block, float* out) {
  const float d = std::ldexp(1.f, block[0] - 128);
  const uint8_t* qs = block + 1;
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(kMxfp4Values[qs[j] & 15]);
    out[j + 16] = d * static_cast<float>(kMxfp4Values[qs[j] >> 4]);
  }
}

// d | 16 bits: the high two of eight scales | 4 bytes: their low four | 8 x 16 bytes as in IQ4_NL. Scales are offset
// by 32.
void DequantizeIQ4_XS(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const auto high = Load<uint16_t>(block + 2);
  for (int group = 0; group < 8; ++group) {
    const int low = (block[4 + group / 2] >> (group % 2 * 4)) & 15;
    const float scale = d * static_cast<float>((low | ((high >> (2 * group)) & 3) << 4) - 32);
    const uint8_t* qs = block + 8 + 16 * group;
    for (int j = 0; j < 16; ++j) {
      out[group * 32 + j] = scale * static_cast<float>(kIq4Values[qs[j] & 15]);
      out[group * 32 + j + 16] = scale * static_cast<float>(kIq4Values[qs[j] >> 4]);
    }
  }
}

// Of weight i in the 64 bytes that Q2_K and Q3_K share: each half of 128 weights has four runs of 32, run r at bit 2 *
// r of its 32 bytes.
int BitPair(const uint8_t* qs, int i) { return (qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3; }

// 16 bytes of scales (low nibble) and mins (high nibble), one per 16 weights | 64 bytes of bit pairs | d | dmin.
void DequantizeQ2_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 80);
  const float dmin = LoadHalf(block + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t scale_min = block[i / 16];
    const float scale = d * static_cast<float>(scale_min & 15);
    const float min = dmin * static_cast<float>(scale_min >> 4);
    out[i] = scale * static_cast<float>(BitPair(block + 16, i)) - min;
  }
}

// 32 bytes of third bits, bit g of byte j that of weight 32 * g + j | 64 bytes of bit pairs | 12 bytes of scales | d.
// Scale s has its low four bits in byte s % 8, its high two in byte 8 + s % 4, and is offset by 32; weights are by 4.
void DequantizeQ3_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 108);
  const uint8_t* scales = block + 96;
  for (int i = 0; i < 256; ++i) {
    const int s = i / 16;
    const int low = (scales[s % 8] >> (s / 8 * 4)) & 15, high = (scales[8 + s % 4] >> (s / 4 * 2)) & 3;
    const int third = (block[i % 32] >> (i / 32)) & 1;
    out[i] =
        d * static_cast<float>((low | high << 4) - 32) * static_cast<float>((BitPair(block + 32, i) | third << 2) - 4);
  }
}

// The eight 6-bit scales and eight 6-bit mins that Q4_K and Q5_K share, in 12 bytes: groups 0..3 lie in the low six
// bits of bytes 0..3 (scales) and 4..7 (mins); groups 4..7 have their low four bits in the nibbles of bytes 8..11 and
// their high two bits in the top of bytes 0..7.
struct ScaleMin {
  int scale, min;
};
ScaleMin UnpackScaleMin(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
          (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4)};
}

// d | dmin | 12 bytes of scales and mins | 128 bytes. Each run of 32 bytes holds two groups of 32: low nibbles, then
// high nibbles.
void DequantizeQ4_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* qs = block + 16;
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = UnpackScaleMin(block + 4, group);
    const float group_scale = d * static_cast<float>(scale);
    const float group_min = dmin * static_cast<float>(min);
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int q = (qs[group / 2 * 32 + j] >> shift) & 15;
      out[group * 32 + j] = group_scale * static_cast<float>(q) - group_min;
    }
  }
}

// As Q4_K with 32 bytes of fifth bits between the scales and the nibbles: bit g of byte j belongs to weight j of
// group g.
void DequantizeQ5_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block);
  const float dmin = LoadHalf(block + 2);
  const uint8_t* high = block + 16;
  const uint8_t* qs = block + 48;
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = UnpackScaleMin(block + 4, group);
    const float group_scale = d * static_cast<float>(scale);
    const float group_min = dmin * static_cast<float>(min);
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int q = ((qs[group / 2 * 32 + j] >> shift) & 15) | Fifth(high[j], group);
      out[group * 32 + j] = group_scale * static_cast<float>(q) - group_min;
    }
  }
}

// 128 bytes of low nibbles | 64 bytes of high bit pairs | 16 signed scales, one per 16 weights | d. In each half of
// 128 weights, run r of 32 weights has its nibbles in bytes 32 * (r % 2) (low for r < 2, high after) and its pairs at
// bit 2 * r. Offset by 32.
void DequantizeQ6_K(const uint8_t* block, float* out) {
  const float d = LoadHalf(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i % 128 / 32, j = i % 32;
    const int nibble = (block[half * 64 + run % 2 * 32 + j] >> (run / 2 * 4)) & 15;
    const int pair = (block[128 + half * 32 + j] >> (run * 2)) & 3;
    const auto scale = static_cast<int8_t>(block[192 + i / 16]);
    out[i] = d * static_cast<float>(scale) * static_cast<float>((nibble | (pair << 4)) - 32);
  }
}

}  // namespace

std::span<const DTypeInfo> DTypes() { return kInfos; }

const DTypeInfo& Info(DType type) {
  for (const DTypeInfo& info : kInfos) {
    if (info.type == type) return info;
  }
  CheckFailed("type is one of DTypes()", __FILE__, __LINE__);
}

std::optional<DType> DTypeFromId(uint32_t ggml_id) {
  for (const DTypeInfo& info : kInfos) {
    if (static_cast<uint32_t>(info.type) == ggml_id) return info.type;
  }
  return std::nullopt;
}

std::string_view GgmlTypeName(uint32_t ggml_id) {
  return ggml_id < std::size(kGgmlNames) ? kGgmlNames[ggml_id] : std::string_view{};
}

void Dequantize(DType type, const uint8_t* src, int64_t n, float* out) {
  const DTypeInfo& info = Info(type);
  CHECK(n >= 0 && n % info.block == 0);
  for (int64_t i = 0; i < n; i += info.block, src += info.block_bytes, out += info.block) {
    switch (type) {
      case DType::kF32: *out = Load<float>(src); break;
      case DType::kF16: *out = LoadHalf(src); break;
      case DType::kBF16: *out = Bf16ToFloat(Load<uint16_t>(src)); break;
      case DType::kQ4_0: DequantizeQ4_0(src, out); break;
      case DType::kQ4_1: DequantizeQ4_1(src, out); break;
      case DType::kQ5_0: DequantizeQ5_0(src, out); break;
      case DType::kQ5_1: DequantizeQ5_1(src, out); break;
      case DType::kQ8_0: DequantizeQ8_0(src, out); break;
      case DType::kQ2_K: DequantizeQ2_K(src, out); break;
      case DType::kQ3_K: DequantizeQ3_K(src, out); break;
      case DType::kQ4_K: DequantizeQ4_K(src, out); break;
      case DType::kQ5_K: DequantizeQ5_K(src, out); break;
      case DType::kQ6_K: DequantizeQ6_K(src, out); break;
      case DType::kIQ4_NL: DequantizeIQ4_NL(src, out); break;
      case DType::kIQ4_XS: DequantizeIQ4_XS(src, out); break;
      case DType::kMXFP4: DequantizeMXFP4(src, out); break;
    }
  }
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 1023;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in a float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t FloatToHalf(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >> 13) & 1023);  // NaN stays a (quiet) NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;                              // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, rounded by hand to nearest even
    const float scaled = std::bit_cast<float>(magnitude) * 0x1p24f;
    const auto whole = static_cast<uint32_t>(scaled);
    const float rest = scaled - static_cast<float>(whole);
    const bool up = rest > 0.5f || (rest == 0.5f && (whole & 1) != 0);
    return static_cast<uint16_t>(sign | (whole + (up ? 1 : 0)));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

float Bf16ToFloat(uint16_t bf16) { return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16); }

uint16_t FloatToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace thermocline
