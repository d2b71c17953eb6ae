// Random weights in the file's own encoding: every code and sub-scale byte occurs, or only extreme ones; scales are
// small finite halves, exponents small ones, of the extreme weights the smallest.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "models/dtype.h"

namespace thermocline::test {

inline void PutHalf(uint8_t* at, float value) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(at, &half, 2);
}

inline std::vector<uint8_t> RandomWeights(DType type, int64_t n, int64_t k, std::mt19937& rng, bool extreme = false) {
  const DTypeInfo& info = Info(type);
  std::vector<uint8_t> bytes(n * (k / info.block) * info.block_bytes);
  constexpr uint8_t kExtremes[] = {0x00, 0xff, 0x0f, 0xf0, 0x80, 0x7f, 0x33, 0xcc};
  for (uint8_t& b : bytes) b = extreme ? kExtremes[rng() % 8] : static_cast<uint8_t>(rng());
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (size_t at = 0; at < bytes.size(); at += info.block_bytes) {
    uint8_t* block = bytes.data() + at;
    switch (type) {
      case DType::kF32: {
        const float value = uniform(rng);
        std::memcpy(block, &value, 4);
        break;
      }
      case DType::kF16: PutHalf(block, uniform(rng)); break;
      case DType::kBF16: {
        const float value = uniform(rng);
        std::memcpy(block, reinterpret_cast<const uint8_t*>(&value) + 2, 2);
        break;
      }
      case DType::kQ6_K: PutHalf(block + 208, uniform(rng) / 64); break;
      case DType::kQ2_K:
        PutHalf(block + 80, uniform(rng) / 4);
        PutHalf(block + 82, uniform(rng) / 4);
        break;
      case DType::kQ3_K: PutHalf(block + 108, uniform(rng) / 16); break;
      case DType::kIQ4_XS: PutHalf(block, uniform(rng) / 256); break;
      case DType::kMXFP4: block[0] = static_cast<uint8_t>(extreme ? rng() % 4 : 116 + rng() % 12); break;
      case DType::kIQ4_NL:
      case DType::kQ4_0:
      case DType::kQ5_0:
      case DType::kQ8_0: PutHalf(block, uniform(rng)); break;
      default:  // scale and min side by side
        PutHalf(block, uniform(rng));
        PutHalf(block + 2, uniform(rng));
    }
  }
  return bytes;
}

}  // namespace thermocline::test
