// What a .heat file says, for people.
#pragma once

#include <string>

#include "predictor/heat.h"

namespace thermocline {

// A few lines: how much of a layer fires for a token, how unevenly, and what leaving neurons out costs.
std::string DescribeHeat(const Heat& heat);

// The same as one self-contained HTML page: by layer, the share of activations that the hottest neurons make (the power
// law of arXiv:2312.12456, fig. 5), the share that fires, and what leaving neurons out costs.
std::string HeatReport(const Heat& heat);

}  // namespace thermocline
