// The vocabulary of weight types: what a GGUF file stores.
#pragma once

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
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
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

float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);  // round to nearest even
float Bf16ToFloat(uint16_t bf16);

}  // namespace thermocline
