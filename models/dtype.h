// The vocabulary of weight types: what a GGUF file stores.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace thermocline {

// Values are ggml's type ids, as they stand in a GGUF file.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ4_NL = 20,
  kIQ4_XS = 23,
  kBF16 = 30,
  kMXFP4 = 39,
};

struct DTypeInfo {
  DType type;
  const char* name;  // "Q4_0"
  int block;         // weights per block
  int block_bytes;
};

std::span<const DTypeInfo> DTypes();                 // all that the loader knows
const DTypeInfo& Info(DType type);                   // type must be one of DTypes()
std::optional<DType> DTypeFromId(uint32_t ggml_id);  // nullopt: unknown
std::string_view GgmlTypeName(uint32_t ggml_id);     // also of types we do not read; "type 99" style is the caller's

// The specification of every type, one weight after the other as ggml stores them: out[i] for i in [0, n), n a
// multiple of the block. No SIMD.
void Dequantize(DType type, const uint8_t* src, int64_t n, float* out);

// What a nibble stands for, times the group's scale: in IQ4_NL and IQ4_XS; in MXFP4 (twice the value of E2M1).
inline constexpr std::array<int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::array<int8_t, 16> kMxfp4Values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);  // round to nearest even
float Bf16ToFloat(uint16_t bf16);
uint16_t FloatToBf16(float value);  // round to nearest even; of finite values

}  // namespace thermocline
