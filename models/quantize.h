// The way into every block type: the inverse of Dequantize (models/dtype.h), with a search for good scales.
//
// A block is encoded in two steps, so that a caller may choose the codes by more than rounding: ChooseScales writes the
// block's scales and says which values they reach, PutCodes writes the codes.
#pragma once

#include <array>
#include <cstdint>

#include "models/dtype.h"
#include "models/value_fit.h"

namespace thermocline {

// The values that a block reaches: weight i is scale[g] * code + offset[g], code in [0, max_code], g = i / group; with
// a table, scale[g] * table->values[code].
struct BlockGrid {
  int group;
  int max_code;
  int zero_code;  // what a group without a scale stores
  std::array<float, 16> scale, offset;
  const ValueTable* table = nullptr;

  int Code(int i, float x) const {  // the nearest
    const float s = scale[i / group];
    if (s == 0) return zero_code;
    if (table != nullptr) return table->Code(x / s);
    const float code = (x - offset[i / group]) / s;
    return code <= 0 ? 0 : code >= static_cast<float>(max_code) ? max_code : static_cast<int>(code + 0.5f);
  }
  float Value(int i, int code) const {
    const float v = table != nullptr ? table->values[code] : static_cast<float>(code);
    return scale[i / group] * v + offset[i / group];
  }
};

// The block types that can be written: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL.
bool HasEncoder(DType type);

// No finite weight beyond this can be written: scales and mins are F16.
inline constexpr float kMaxEncodedWeight = 65504;

// x: (Info(type).block) weights, finite and within kMaxEncodedWeight. importance: as many factors, not negative, of
// their squared errors. Writes the scales of `block`, whose other bytes become zero. The error of rounding to the grid,
// weighted so, is near its minimum, and never above that of the scale that spans the range from least to greatest.
BlockGrid ChooseScales(DType type, const float* x, const float* importance, uint8_t* block);

// Whether a block's values are all in proportion to one scale: Q4_0, Q5_0, Q8_0, IQ4_NL.
bool HasOneScale(DType type);
// Of such a type: multiplies the scale as far as F16 has it. A scale that would vanish or become negative stays.
void MultiplyScale(float factor, BlockGrid& grid);
void PutScale(const BlockGrid& grid, uint8_t* block);

// codes: (Info(type).block), each in [0, max_code]. After ChooseScales of the same block.
void PutCodes(DType type, const uint8_t* codes, uint8_t* block);

// n weights, a multiple of the block, to `out`. importance: (n) as in ChooseScales, or null where all count alike. Also
// to F16, BF16 and F32, where importance counts for nothing.
void Quantize(DType type, const float* x, const float* importance, int64_t n, uint8_t* out);

}  // namespace thermocline
