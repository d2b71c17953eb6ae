// Weights and activations made BF16 for AMX. Needs Isa::kAmx. What crosses this header has no code that would be
// compiled for two instruction sets.
#pragma once

#include <cstdint>

namespace thermocline {

// Panels as DecodeAvx512 leaves them (cpu/jit/linear_jit.h): chunks of 32 k.
struct DecodedChunks {
  const uint8_t* data;
  int64_t chunk_bytes;
  int groups;    // of a chunk: 1 or 2
  bool has_min;  // else:
  float zero_point;
};
// n chunks of a panel to n steps of cpu/jit/tile_amx.h, step_bytes apart.
void ChunksToBf16(const DecodedChunks& chunks, int64_t n, uint8_t* steps, int64_t step_bytes);

// k floats, and zeros behind them up to `end`, a multiple of 32.
void FloatsToBf16(const float* x, int64_t k, int64_t end, uint8_t* out);

}  // namespace thermocline
