// AMX as both of its kernels use it: 32 rows of x in two halves, times two blocks of 16 outputs, over steps of 32 k in
// BF16.
//
//   tmm0..3   sums, by half and block
//   tmm4, 5   a step of x, of each half: 16 rows of 64 bytes
//   tmm6, 7   a step of weights, of each block: line j has k = 2j, 2j + 1 of 16 outputs
//
// Static, as files compiled for different instruction sets use it.
#pragma once

#include <cstdint>

namespace thermocline {

inline constexpr int kAmxHalves = 2, kAmxHalfRows = 16;
inline constexpr int kAmxPanels = 2;  // blocks, of weights
inline constexpr int kAmxStepK = 32;
inline constexpr int kAmxTileBytes = 16 * 64;
inline constexpr int kAmxStepBytes = kAmxPanels * kAmxTileBytes;  // of weights

// Where, it seems, another process works on the core's other thread, which a guest cannot see, a tile takes 3 to 4
// times as long to load. So many other instructions behind each tile operation make a product half as fast again then,
// and cost nothing otherwise (HACKING.md "Numerics").
inline constexpr int kAmxSpace = 8;

// What ldtilecfg loads.
struct AmxConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(AmxConfig) == 64);

// For `rows` rows of x, at most 32.
static inline AmxConfig AmxConfigFor(int64_t rows) {
  AmxConfig config;
  const auto set = [&](int tile, int64_t n) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(n);
  };
  for (int half = 0; half < kAmxHalves; ++half) {
    const int64_t left = rows - half * kAmxHalfRows;
    if (left <= 0) break;
    const int64_t here = left < kAmxHalfRows ? left : kAmxHalfRows;
    for (int panel = 0; panel < kAmxPanels; ++panel) set(2 * half + panel, here);
    set(4 + half, here);
  }
  for (int panel = 0; panel < kAmxPanels; ++panel) set(6 + panel, kAmxStepK / 2);
  return config;
}

// For this thread, until ReleaseAmx. (GCC 12 drops stores to what its own _tile_loadconfig reads.)
static inline void LoadAmxConfig(const AmxConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
static inline void ReleaseAmx() { asm volatile("tilerelease"); }

}  // namespace thermocline
