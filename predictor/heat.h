// What a text has told about the neurons of a model, kept in a .heat file beside it.
//
// The file is a GGUF container: metadata heat.*, of which the first is a checksum of the whole file, then tensors in
// F32, predictors in Q8_0, blk.N.* for each layer. Counts are whole numbers below 2^24, but for recent ones.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "models/gguf.h"
#include "models/model.h"
#include "predictor/heat_predictors.h"

namespace thermocline {

// Of |activation|: bin 0 is below 2^kHeatSmallest, then kHeatPerOctave bins for each octave up to 2^kHeatLargest, in
// the last of which falls all that is larger.
inline constexpr int kHeatSmallest = -24, kHeatLargest = 8, kHeatPerOctave = 16;
inline constexpr int kHeatBins = 1 + (kHeatLargest - kHeatSmallest) * kHeatPerOctave;

// The activation of a neuron is act(gate) where the FFN has a gate, else act(up).
struct LayerHeat {
  std::vector<float> levels;      // (targets) |activation| under which targets[i] of the values lie
  std::vector<double> fired;      // (targets, n_ff) tokens whose |activation| was above levels[i]
  std::vector<double> sum_abs;    // (n_ff) sums of |activation|
  std::vector<double> histogram;  // (kHeatBins) of neurons and tokens
};

// One setting of the mode `threshold`.
struct ThresholdPoint {
  float sparsity;             // mean over layers of the share of neurons that is left out
  float rise;                 // of perplexity over dense, on text that did not choose the levels: 0.01 is 1 %
  std::vector<float> levels;  // (layers) a neuron with |act(gate)| up to it is left out
  std::vector<float> missed;  // (layers) |all - chosen|^2 / |all|^2 of what the FFN adds, on that text
};

// What a user's own texts have told lately (predictor/recent_heat.h).
struct RecentHeat {
  double tokens = 0;                      // that were counted, those of long ago as parts of one
  std::vector<std::vector<float>> fired;  // by layer (n_ff): of them, for which each neuron fired; empty: none
};

struct Heat {
  uint64_t identity = 0;   // GgufFile::Identity of the model
  uint64_t text_hash = 0;  // of the tokens it was learned from
  std::string model;       // how it is called
  Activation activation = Activation::kSilu;
  int64_t n_ff = 0;
  int64_t n_tokens = 0;                    // of the text, that were read
  int64_t n_counted = 0;                   // of them, those in `fired` and `sum_abs`
  std::vector<float> targets;              // sparsities, ascending; ReLU: {0}, and fires what is on
  std::vector<LayerHeat> layers;           // all of the model
  uint64_t calibration_hash = 0;           // of the texts that chose and judged what follows
  std::vector<float> sensitivity;          // (layers) predictor/threshold.h; less than 0: not measured; or empty
  std::vector<ThresholdPoint> thresholds;  // ascending in sparsity; empty: not calibrated
  int chosen_threshold = -1;               // of them, the one within the rise that was asked for; -1: none was
  HeatPredictors predictors;
  RecentHeat recent;

  // Whether a text was read at all: what `chat` learned may stand in a file alone.
  bool profiled() const { return n_counted > 0; }
  // The share of tokens for which each neuron fires (n_ff).
  std::vector<float> Frequency(int layer, int target) const;
  double ActiveShare(int layer, int target) const;  // the mean of that
  // The |activation| under which that share of a layer's values lies.
  float Level(int layer, double sparsity) const;
  // The share that these values have of the layer's sum of squares.
  double SquaresBelow(int layer, double sparsity) const;
};

int HeatBin(float activation);
// The least value of bin > 0.
float HeatBinBegin(int bin);

std::vector<uint8_t> SerializeHeat(const Heat& heat);
// Throws Error where the file cannot be read, is damaged anywhere, or belongs to another model than `file`.
Heat ReadHeat(const std::filesystem::path& path, const GgufFile& file, const ModelConfig& config);

// Beside the model, by its name: model.gguf has model.heat.
std::filesystem::path HeatPath(std::filesystem::path model);

}  // namespace thermocline
