// The tile of AMX: rows of x in BF16, 32 at a time, times the 16 output rows of one panel or the 32 of two.
#pragma once

#include <xbyak/xbyak.h>

#include <cstdint>
#include <memory>

namespace thermocline {

inline constexpr int kAmxHalves = 2, kAmxHalfRows = 16;  // of a tile's rows of x
inline constexpr int kAmxPanels = 2;
inline constexpr int kAmxStepK = 32;             // k of one step
inline constexpr int kAmxWeightBytes = 16 * 64;  // of a panel in a step: line j has k = 2j, 2j + 1 of 16 output rows
inline constexpr int kAmxStepBytes = kAmxPanels * kAmxWeightBytes;

// What ldtilecfg loads.
struct AmxConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64);

// A tile under the config that LoadAmxConfig left.
struct AmxTileArgs {
  const uint8_t* weights;  // by step and panel, kAmxWeightBytes each, 64-byte aligned
  const uint8_t* x;        // row 0 at the first k
  int64_t x_stride_bytes;
  float* y;
  int64_t y_stride_bytes;
  int64_t n_steps;  // at least 1
  int64_t accumulate;
};
using AmxTileFn = void (*)(const AmxTileArgs*);

// Tiles for `rows` rows of x, at most 32.
AmxConfig AmxConfigFor(int64_t rows);
// For this thread, until ReleaseAmx. (GCC 12 drops stores to what its own _tile_loadconfig reads.)
inline void LoadAmxConfig(const AmxConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
inline void ReleaseAmx() { asm volatile("tilerelease"); }

std::unique_ptr<Xbyak::CodeGenerator> MakeTileAmx(int halves, int panels);

}  // namespace thermocline
