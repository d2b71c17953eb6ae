// Which neurons to leave out by |activation|, so that a given share is left out at the least cost (TEAL,
// arXiv:2408.14690 sec. 4.3: greedy steps; CATS, arXiv:2404.08763: the levels are quantiles of |act(gate)|).
//
// What leaving out a layer's smallest neurons costs is taken as its sensitivity, which is measured, times the share of
// its squared activations that goes (Heat::SquaresBelow). Costs of layers are added.
#pragma once

#include <span>
#include <vector>

#include "predictor/heat.h"

namespace thermocline {

// By layer the share of neurons to leave out, with that mean, within 0 and kMaxLayerSparsity.
inline constexpr double kMaxLayerSparsity = 0.98;
std::vector<double> SpreadSparsity(const Heat& heat, std::span<const float> sensitivity, double mean);

// The setting for any mean up to the largest that is calibrated: on a line between its neighbours, of which the first
// leaves out nothing. Throws Error where none is calibrated or the mean is beyond.
ThresholdPoint ThresholdFor(const Heat& heat, double mean);

}  // namespace thermocline
