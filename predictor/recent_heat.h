// What a user's own texts have lately told about the neurons of a model: counts that fade while tokens come.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "predictor/heat.h"

namespace thermocline {

// Tokens after which what was counted before weighs half.
inline constexpr double kHeatHalfLife = 512;

// Which neurons fired in generated rows.
struct Firings {
  int64_t tokens = 0;                        // rows; of one that was cancelled not all layers have counted
  std::vector<std::vector<uint32_t>> fired;  // by layer (n_ff), in the file's order: for so many of them; or empty
};

// Adds what came after all that was counted before.
void AddFirings(const Firings& firings, double half_life, RecentHeat& recent);

// The heat of the recent tokens, and of a few of the profile's, which keep in order what is seldom seen: with it go
// ProfileCounts, and with them what predictor/heat_order.h makes of a heat. A profile that has counted nothing adds
// nothing.
Heat WithRecent(const Heat& heat);
// Where nobody has profiled, what `chat` learned.
inline Heat ProfiledOrRecent(Heat heat) { return heat.profiled() ? std::move(heat) : WithRecent(heat); }

}  // namespace thermocline
