// What it is worth that heat follows its user: on a text whose topic changes, the share of firings that falls on a
// device's neurons, chosen by what came before the change and chosen anew on the way.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "models/tokenizer.h"
#include "predictor/recent_heat.h"
#include "runtime/engine.h"

namespace thermocline {

inline constexpr int kAnswerTokens = 64;  // after so many the following heat may have neurons moved

// Which neurons fire, by answer of kAnswerTokens tokens, the last one shorter. `engine` holds `model` with dense FFNs;
// levels: of each layer, the |activation| above which a neuron fires.
std::vector<Firings> CountAnswers(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                                  std::span<const float> levels);

// Shares of the firings of the second text.
struct FollowedHits {
  double silent = 0;  // share of neurons that do not fire
  double hot = 0;     // share of each layer's neurons that are the device's
  int unit = 0;       // neurons that move as one
  double kept = 0;    // hits where they are the hottest of the first text
  double followed =
      0;              // where they are that at first, and after each answer may change as `chat --adapt` would have it
  double always = 0;  // where they change after each answer, however little that gains
  double own = 0;     // where they are the hottest of the second text
  int n_replans = 0;  // of the followed
  double most_gain = 0;   // Replan::gain of the kept, at most: what of the CPU's reading of FFNs they cost
  int64_t n_answers = 0;  // of the second text
};
// neuron_bytes, gate_bytes: of up and down, and of the gate, that the CPU reads of a neuron.
FollowedHits FollowHeat(std::span<const Firings> first, std::span<const Firings> second, double hot, int unit,
                        double neuron_bytes, double gate_bytes, double half_life = kHeatHalfLife);

// At a quarter and a half of hot neurons, moved by the fewest that lose nothing, and one by one; where no activation
// silences neurons, as a sparser and a denser model. Throws Error for texts that are too short, and for FFNs of which
// no neuron can be skipped.
std::vector<FollowedHits> FollowTexts(const GgufFile& file, const Model& model, Engine& engine,
                                      std::span<const TokenId> first, std::span<const TokenId> second);

// A table.
std::string DescribeFollowed(std::span<const FollowedHits> hits);

}  // namespace thermocline
