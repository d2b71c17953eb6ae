// Activations made BF16 for AMX. Needs Isa::kAmx. What crosses this header has no code that would be
// compiled for two instruction sets.
#pragma once

#include <cstdint>

namespace thermocline {

// k floats, and zeros behind them up to `end`, a multiple of 32.
void FloatsToBf16(const float* x, int64_t k, int64_t end, uint8_t* out);

}  // namespace thermocline
