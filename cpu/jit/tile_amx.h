// The tile of AMX: rows of x in BF16, 32 at a time, times the 16 output rows of one panel or the 32 of two.
#pragma once

#include <xbyak/xbyak.h>

#include <cstdint>
#include <memory>

#include "cpu/amx.h"

namespace thermocline {

// A tile under the config that LoadAmxConfig left.
struct AmxTileArgs {
  const uint8_t* weights;  // by step and panel, kAmxTileBytes each, 64-byte aligned
  const uint8_t* x;        // row 0 at the first k
  int64_t x_stride_bytes;
  float* y;
  int64_t y_stride_bytes;
  int64_t n_steps;  // at least 1
  int64_t accumulate;
};
using AmxTileFn = void (*)(const AmxTileArgs*);

std::unique_ptr<Xbyak::CodeGenerator> MakeTileAmx(int halves, int panels);

}  // namespace thermocline
