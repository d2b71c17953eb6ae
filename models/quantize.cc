// Layouts: models/dtype.cc, whose Dequantize these functions invert.
#include "models/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "models/check.h"
#include "models/quantize_fit.h"

namespace thermocline {
namespace {

constexpr int kMaxBlock = 256;
// Rounds in which the scales of a K block's groups and the scale of these scales are chosen in turn; the second and
// third lower the error by 1 % and 0.1 %.
constexpr int kRounds = 3;

float ToHalf(float value) { return HalfToFloat(FloatToHalf(std::clamp(value, -65504.0f, 65504.0f))); }
void PutHalf(uint8_t* at, float value) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(at, &half, sizeof half);
}

// To nearest even.
void PutBf16(uint8_t* at, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const auto bf16 = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  std::memcpy(at, &bf16, sizeof bf16);
}

double Error(const BlockGrid& grid, const WeightGroup& group, int g) {
  return RoundingError(group, grid.scale[g], grid.offset[g], grid.max_code);
}

// Q4_0, Q5_0, Q8_0: d | codes - zero code.
struct SymmetricType {
  int lo, hi;
};
BlockGrid ChooseSymmetric(SymmetricType type, const WeightGroup& group, uint8_t* block) {
  BlockGrid best = {.group = group.n, .max_code = type.hi - type.lo, .zero_code = -type.lo, .scale{}, .offset{}};
  double least = INFINITY;
  float largest = 0;
  for (int i = 0; i < group.n; ++i) largest = std::max(largest, std::abs(group.x[i]));
  const float fitted = FitSymmetric(group, type.lo, type.hi);
  for (const float scale : {fitted, largest / static_cast<float>(type.hi)}) {
    BlockGrid grid = best;
    grid.scale[0] = ToHalf(scale);
    grid.offset[0] = grid.scale[0] * static_cast<float>(type.lo);
    const double error = Error(grid, group, 0);
    if (error < least) {
      least = error;
      best = grid;
    }
  }
  PutHalf(block, best.scale[0]);
  return best;
}

// Q4_1, Q5_1: d | m | codes.
BlockGrid ChooseAffine(int max_code, const WeightGroup& group, uint8_t* block) {
  BlockGrid best = {.group = group.n, .max_code = max_code, .zero_code = 0, .scale{}, .offset{}};
  double least = INFINITY;
  for (const AffineScale at : {FitAffine(group, max_code, false), SpanAffine(group, max_code, false)}) {
    BlockGrid grid = best;
    grid.scale[0] = ToHalf(at.scale);
    grid.offset[0] = ToHalf(at.min);
    const double error = Error(grid, group, 0);
    if (error < least) {
      least = error;
      best = grid;
    }
  }
  PutHalf(block, best.scale[0]);
  PutHalf(block + 2, best.offset[0]);
  return best;
}

// IQ4_NL: d | codes.
BlockGrid ChooseTable(const ValueTable& table, const WeightGroup& group, uint8_t* block) {
  BlockGrid grid = {.group = group.n, .max_code = 15, .zero_code = table.Code(0), .scale{}, .offset{}, .table = &table};
  float largest = 0;
  for (int i = 0; i < group.n; ++i)
    if (std::abs(group.x[i]) > std::abs(largest)) largest = group.x[i];
  double least = INFINITY;
  for (const float scale :
       {FitTable(group, table), largest / table.values.front(), std::abs(largest) / table.values.back()}) {
    const double error = TableError(group, table, ToHalf(scale));
    if (error >= least) continue;
    least = error;
    grid.scale[0] = ToHalf(scale);
  }
  PutHalf(block, grid.scale[0]);
  return grid;
}

// The scales of a K block: group g has scale d * s[g] and offset -dmin * m[g] (Q4_K, Q5_K), or d * s[g] and the zero
// code's (Q6_K).
struct SuperScales {
  float d = 0, dmin = 0;
  std::array<int, 16> s{}, m{};
};

BlockGrid GridOf(const SuperScales& scales, int n_groups, bool affine) {
  BlockGrid grid = {.group = kMaxBlock / n_groups, .max_code = 0, .zero_code = affine ? 0 : 32, .scale{}, .offset{}};
  for (int g = 0; g < n_groups; ++g) {
    grid.scale[g] = scales.d * static_cast<float>(scales.s[g]);
    grid.offset[g] = affine ? -scales.dmin * static_cast<float>(scales.m[g]) : -32 * grid.scale[g];
  }
  return grid;
}

// Chooses s and m of one group for given d and dmin: near what was fitted, by the error that rounding then makes.
void ChooseGroup(const WeightGroup& group, AffineScale fit, int max_code, SuperScales& scales, int g) {
  const auto nearest = [](float value, float unit) {
    return unit > 0 ? static_cast<int>(std::clamp(std::round(value / unit), 0.0f, 63.0f)) : 0;
  };
  double weight = 0, x = 0;
  for (int i = 0; i < group.n; ++i) {
    weight += group.w[i];
    x += static_cast<double>(group.w[i]) * group.x[i];
  }
  double least = INFINITY;
  const int s0 = nearest(fit.scale, scales.d), m0 = nearest(-fit.min, scales.dmin);
  for (int s = std::max(0, s0 - 1); s <= std::min(63, s0 + 1); ++s) {
    const float scale = scales.d * static_cast<float>(s);
    // The min that suits this scale's codes best, and the fitted one.
    const CodeSums sums = SumCodes(group, scale, fit.min, max_code);
    const auto suited = static_cast<float>(weight > 0 ? (scale * sums.q - x) / weight : 0);
    for (const int m : {m0, nearest(suited, scales.dmin)}) {
      const double error = RoundingError(group, scale, -scales.dmin * static_cast<float>(m), max_code);
      if (error < least) {
        least = error;
        scales.s[g] = s;
        scales.m[g] = m;
      }
    }
  }
}

// Least squares for d and dmin with all codes, s and m given: x ~ d * (s q) - dmin * m.
void SolveSuper(const std::array<WeightGroup, 16>& groups, int n_groups, int max_code, SuperScales& scales) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (int g = 0; g < n_groups; ++g) {
    const double s = scales.s[g], m = scales.m[g];
    const CodeSums sums = SumCodes(groups[g], scales.d * static_cast<float>(scales.s[g]),
                                   -scales.dmin * static_cast<float>(scales.m[g]), max_code);
    for (int i = 0; i < groups[g].n; ++i) {
      bb += groups[g].w[i] * m * m;
      bx -= groups[g].w[i] * m * groups[g].x[i];
    }
    aa += s * s * sums.qq;
    ab -= s * m * sums.q;
    ax += s * sums.xq;
  }
  const double determinant = aa * bb - ab * ab;
  if (determinant > 1e-9 * aa * bb) {
    scales.d = ToHalf(static_cast<float>((bb * ax - ab * bx) / determinant));
    scales.dmin = ToHalf(static_cast<float>((aa * bx - ab * ax) / determinant));
  } else if (aa > 0) {
    scales.d = ToHalf(static_cast<float>(ax / aa));
  }
}

// s and m in 12 bytes, as models/dtype.cc unpacks them.
void PackScaleMin(const SuperScales& scales, uint8_t* packed) {
  for (int g = 0; g < 4; ++g) {
    packed[g] = static_cast<uint8_t>(scales.s[g] | ((scales.s[g + 4] >> 4) << 6));
    packed[g + 4] = static_cast<uint8_t>(scales.m[g] | ((scales.m[g + 4] >> 4) << 6));
    packed[g + 8] = static_cast<uint8_t>((scales.s[g + 4] & 15) | ((scales.m[g + 4] & 15) << 4));
  }
}

std::array<WeightGroup, 16> Groups(const float* x, const float* w, int n_groups) {
  std::array<WeightGroup, 16> groups{};
  const int n = kMaxBlock / n_groups;
  for (int g = 0; g < n_groups; ++g) groups[g] = {x + g * n, w + g * n, n};
  return groups;
}

double BlockError(const BlockGrid& grid, const std::array<WeightGroup, 16>& groups, int n_groups) {
  double error = 0;
  for (int g = 0; g < n_groups; ++g) error += Error(grid, groups[g], g);
  return error;
}

// Q4_K, Q5_K: d | dmin | 12 bytes of s and m | codes.
BlockGrid ChooseAffineSuper(int max_code, const float* x, const float* w, uint8_t* block) {
  constexpr int kGroups = 8;
  const auto groups = Groups(x, w, kGroups);
  BlockGrid best{};
  SuperScales best_scales;
  double least = INFINITY;
  for (const bool fitted : {true, false}) {
    std::array<AffineScale, kGroups> fits;
    float scale = 0, min = 0;
    for (int g = 0; g < kGroups; ++g) {
      fits[g] = fitted ? FitAffine(groups[g], max_code, true) : SpanAffine(groups[g], max_code, true);
      scale = std::max(scale, fits[g].scale);
      min = std::max(min, -fits[g].min);
    }
    SuperScales scales{.d = ToHalf(scale / 63), .dmin = ToHalf(min / 63), .s{}, .m{}};
    for (int round = 0; round < (fitted ? kRounds : 1); ++round) {
      for (int g = 0; g < kGroups; ++g) ChooseGroup(groups[g], fits[g], max_code, scales, g);
      BlockGrid grid = GridOf(scales, kGroups, true);
      grid.max_code = max_code;
      const double error = BlockError(grid, groups, kGroups);
      if (error < least) {
        least = error;
        best = grid;
        best_scales = scales;
      }
      SolveSuper(groups, kGroups, max_code, scales);
      if (scales.d < 0 || scales.dmin < 0) break;
    }
  }
  PutHalf(block, best_scales.d);
  PutHalf(block + 2, best_scales.dmin);
  PackScaleMin(best_scales, block + 4);
  return best;
}

// Q6_K: codes | 16 signed s | d.
BlockGrid ChooseSymmetricSuper(const float* x, const float* w, uint8_t* block) {
  constexpr int kGroups = 16, kMaxCode = 63;
  const auto groups = Groups(x, w, kGroups);
  std::array<float, kGroups> fits;
  for (int g = 0; g < kGroups; ++g) fits[g] = FitSymmetric(groups[g], -32, 31);
  const float widest =
      *std::max_element(fits.begin(), fits.end(), [](float a, float b) { return std::abs(a) < std::abs(b); });
  BlockGrid best{};
  SuperScales best_scales;
  double least = INFINITY;
  // The widest scale becomes -128, or 127 where that leaves less to round.
  for (const float end : {-128.0f, 127.0f}) {
    SuperScales scales{.d = ToHalf(widest / end), .dmin = 0, .s{}, .m{}};
    for (int round = 0; round < kRounds; ++round) {
      for (int g = 0; g < kGroups; ++g) {
        const int s0 =
            scales.d != 0 ? static_cast<int>(std::clamp(std::round(fits[g] / scales.d), -128.0f, 127.0f)) : 0;
        double group_least = INFINITY;
        for (int s = std::max(-128, s0 - 1); s <= std::min(127, s0 + 1); ++s) {
          const float scale = scales.d * static_cast<float>(s);
          const double error = RoundingError(groups[g], scale, -32 * scale, kMaxCode);
          if (error >= group_least) continue;
          group_least = error;
          scales.s[g] = s;
        }
      }
      BlockGrid grid = GridOf(scales, kGroups, false);
      grid.max_code = kMaxCode;
      const double error = BlockError(grid, groups, kGroups);
      if (error < least) {
        least = error;
        best = grid;
        best_scales = scales;
      }
      double aa = 0, ax = 0;
      for (int g = 0; g < kGroups; ++g) {
        const CodeSums sums = SumCodes(groups[g], grid.scale[g], grid.offset[g], kMaxCode);
        double xs = 0, ws = 0;
        for (int i = 0; i < groups[g].n; ++i) {
          ws += groups[g].w[i];
          xs += static_cast<double>(groups[g].w[i]) * groups[g].x[i];
        }
        const double s = scales.s[g];
        aa += s * s * (sums.qq - 64 * sums.q + 1024 * ws);
        ax += s * (sums.xq - 32 * xs);
      }
      if (aa > 0) scales.d = ToHalf(static_cast<float>(ax / aa));
    }
  }
  for (int g = 0; g < kGroups; ++g) block[192 + g] = static_cast<uint8_t>(best_scales.s[g]);
  PutHalf(block + 208, best_scales.d);
  return best;
}

// 32 codes: low nibbles of 16 bytes, then high nibbles; the fifth bits, if any, in the 32 bits of `high`.
void PutNibbles(const uint8_t* codes, uint8_t* nibbles, uint8_t* high) {
  uint32_t bits = 0;
  for (int j = 0; j < 16; ++j) nibbles[j] = static_cast<uint8_t>((codes[j] & 15) | ((codes[j + 16] & 15) << 4));
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(codes[j] >> 4) << j;
  if (high != nullptr) std::memcpy(high, &bits, sizeof bits);
}

// 256 codes of Q4_K and Q5_K.
void PutSuperNibbles(const uint8_t* codes, uint8_t* nibbles, uint8_t* high) {
  for (int group = 0; group < 8; group += 2) {
    for (int j = 0; j < 32; ++j) {
      nibbles[group * 16 + j] =
          static_cast<uint8_t>((codes[group * 32 + j] & 15) | ((codes[group * 32 + 32 + j] & 15) << 4));
    }
  }
  if (high == nullptr) return;
  std::memset(high, 0, 32);
  for (int i = 0; i < 256; ++i) high[i % 32] |= static_cast<uint8_t>((codes[i] >> 4) << (i / 32));
}

void PutQ6_K(const uint8_t* codes, uint8_t* block) {
  std::memset(block, 0, 192);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i % 128 / 32, j = i % 32;
    block[half * 64 + run % 2 * 32 + j] |= static_cast<uint8_t>((codes[i] & 15) << (run / 2 * 4));
    block[128 + half * 32 + j] |= static_cast<uint8_t>((codes[i] >> 4) << (run * 2));
  }
}

}  // namespace

bool HasEncoder(DType type) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ8_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
    case DType::kIQ4_NL: return true;
    default: return false;
  }
}

BlockGrid ChooseScales(DType type, const float* x, const float* importance, uint8_t* block) {
  const int n = Info(type).block;
  std::memset(block, 0, static_cast<size_t>(Info(type).block_bytes));
  // Where nothing counts, everything does.
  std::array<float, kMaxBlock> ones;
  ones.fill(1);
  const bool counts = std::any_of(importance, importance + n, [](float w) { return w > 0; });
  const WeightGroup group = {x, counts ? importance : ones.data(), n};
  switch (type) {
    case DType::kQ4_0: return ChooseSymmetric({-8, 7}, group, block);
    case DType::kQ5_0: return ChooseSymmetric({-16, 15}, group, block);
    case DType::kQ8_0: return ChooseSymmetric({-127, 127}, group, block);
    case DType::kQ4_1: return ChooseAffine(15, group, block);
    case DType::kQ5_1: return ChooseAffine(31, group, block);
    case DType::kQ4_K: return ChooseAffineSuper(15, group.x, group.w, block);
    case DType::kQ5_K: return ChooseAffineSuper(31, group.x, group.w, block);
    case DType::kQ6_K: return ChooseSymmetricSuper(group.x, group.w, block);
    case DType::kIQ4_NL: return ChooseTable(Iq4Table(), group, block);
    default: CheckFailed("HasEncoder(type)", __FILE__, __LINE__);
  }
}

bool HasOneScale(DType type) {
  return type == DType::kQ4_0 || type == DType::kQ5_0 || type == DType::kQ8_0 || type == DType::kIQ4_NL;
}

void MultiplyScale(float factor, BlockGrid& grid) {
  const float scale = ToHalf(grid.scale[0] * factor);
  if (!(scale / grid.scale[0] > 0)) return;
  grid.offset[0] *= scale / grid.scale[0];
  grid.scale[0] = scale;
}

void PutScale(const BlockGrid& grid, uint8_t* block) { PutHalf(block, grid.scale[0]); }

void PutCodes(DType type, const uint8_t* codes, uint8_t* block) {
  switch (type) {
    case DType::kQ4_0:
    case DType::kIQ4_NL: return PutNibbles(codes, block + 2, nullptr);
    case DType::kQ4_1: return PutNibbles(codes, block + 4, nullptr);
    case DType::kQ5_0: return PutNibbles(codes, block + 6, block + 2);
    case DType::kQ5_1: return PutNibbles(codes, block + 8, block + 4);
    case DType::kQ8_0:
      for (int j = 0; j < 32; ++j) block[2 + j] = static_cast<uint8_t>(codes[j] - 127);
      return;
    case DType::kQ4_K: return PutSuperNibbles(codes, block + 16, nullptr);
    case DType::kQ5_K: return PutSuperNibbles(codes, block + 48, block + 16);
    case DType::kQ6_K: return PutQ6_K(codes, block);
    default: CheckFailed("HasEncoder(type)", __FILE__, __LINE__);
  }
}

void Quantize(DType type, const float* x, const float* importance, int64_t n, uint8_t* out) {
  const DTypeInfo& info = Info(type);
  CHECK(n >= 0 && n % info.block == 0);
  if (type == DType::kF32) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  if (type == DType::kF16) {
    for (int64_t i = 0; i < n; ++i) PutHalf(out + 2 * i, x[i]);
    return;
  }
  if (type == DType::kBF16) {
    for (int64_t i = 0; i < n; ++i) PutBf16(out + 2 * i, x[i]);
    return;
  }
  std::array<float, kMaxBlock> ones;
  ones.fill(1);
  std::array<uint8_t, kMaxBlock> codes;
  for (int64_t i = 0; i < n; i += info.block, out += info.block_bytes) {
    const BlockGrid grid = ChooseScales(type, x + i, importance == nullptr ? ones.data() : importance + i, out);
    for (int j = 0; j < info.block; ++j) codes[j] = static_cast<uint8_t>(grid.Code(j, x[i + j]));
    PutCodes(type, codes.data(), out);
  }
}

}  // namespace thermocline
