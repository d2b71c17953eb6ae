// The arithmetic of planted sparsity (runtime/synth.h).
#pragma once

#include <vector>

#include "runtime/synth.h"

namespace thermocline {

// The last numbers of a planted model's hidden state, which are 1 for every token: one group of the block types, so
// that they share no scale with what varies.
inline constexpr int kConstants = 32;

// How often each of n neurons fires, the hottest first; the mean is 1 - sparsity.
std::vector<double> FiringFrequencies(int n, double sparsity, PlantedHeat heat);

// The z that a standard normal variable exceeds with probability p in (0, 1).
double NormalQuantile(double p);

// E[max(0, y - z)^2] of a standard normal y.
double RectifiedSquare(double z);

// One layer of a planted model, whose weights that read the state have a deviation of 1 / sqrt(n_embd - kConstants).
// What varies in the state is independent of it and grows from layer to layer as planned here.
struct SynthLayer {
  double state_deviation;  // of each varying number of the hidden state in front of the layer; 1 behind the embedding
  double output_weight_deviation, down_weight_deviation;  // of attn_output and ffn_down
};
// mean_rectified_square: of RectifiedSquare over the neurons' quantiles.
SynthLayer PlanSynthLayer(const SynthShape& shape, int layer, double mean_rectified_square);

}  // namespace thermocline
