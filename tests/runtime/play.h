// What hybrid engines are compared by: two sequences, fed with given tokens, and plans at random.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "cpu/activations.h"
#include "predictor/placement.h"
#include "runtime/engine.h"

namespace thermocline {

using Logits = std::vector<std::vector<float>>;

// So that prompt rows differ between two ways to add up as little as generated ones do, without the steps of 8 bits.
inline void KeepAllIn16Bits(Model& model) {
  for (Op& op : model.program.ops) op.large_group = kAllGroups;
}

inline TokenId TokenAt(int sequence, int position) { return (position * 37 + sequence * 11 + 5) % 280; }

// All logits of a prompt of n_rows, by default some pages, and one of few rows, in pieces of rows of that kind, the
// last row as a generated one if any follow, then of n_generated tokens of the first sequence alone, then of as many of
// both side by side. Takes n_rows + 2 n_generated tokens of context.
inline Logits Play(Engine& engine, RowKind kind, int n_generated = 2, int piece_rows = 75, int n_rows = 150) {
  const int length[2] = {n_rows, 9};
  Logits logits;
  const auto step = [&](const Batch& batch) {
    engine.Step(batch);
    for (size_t i = 0; i < batch.size(); ++i)
      logits.emplace_back(engine.Logits(static_cast<int>(i)).begin(), engine.Logits(static_cast<int>(i)).end());
  };
  const int sequences[2] = {engine.NewSequence(), engine.NewSequence()};
  for (int s = 0; s < 2; ++s)
    for (int at = 0; at < length[s];) {
      Batch batch;
      for (int i = 0; i < piece_rows && at < length[s]; ++i, ++at) {
        const bool last = at + 1 == length[s] && n_generated > 0;
        batch.push_back({TokenAt(s, at), sequences[s], at, last ? RowKind::kGenerated : kind, true});
      }
      step(batch);
    }
  for (int i = 0; i < 2 * n_generated; ++i) {
    Batch batch;
    for (int s = 0; s < (i < n_generated ? 1 : 2); ++s) {
      const int at = length[s] + (s == 0 ? i : i - n_generated);
      batch.push_back({TokenAt(s, at), sequences[s], at, RowKind::kGenerated, true});
    }
    step(batch);
  }
  for (const int sequence : sequences) engine.FreeSequence(sequence);
  return logits;
}

// Of all differences, over the largest logit.
inline double RootMeanSquare(const Logits& a, const Logits& b) {
  REQUIRE(a.size() == b.size());
  double squares = 0, largest = 0;
  int64_t n = 0;
  for (size_t i = 0; i < a.size(); ++i)
    for (size_t j = 0; j < a[i].size(); ++j, ++n) {
      const double d = double{a[i][j]} - b[i][j];
      squares += d * d;
      largest = std::max(largest, std::abs(double{a[i][j]}));
    }
  return std::sqrt(squares / static_cast<double>(n)) / largest;
}

struct Difference {
  double worst = 0;                        // max |d| over max |logit| of a position
  int n_positions = 0, n_far = 0;          // of which so many are further off than `far`
  int other_choices = 0, far_choices = 0;  // another token chosen; though the best two were far apart
};

// far: a difference between two logits over the largest.
inline Difference Compare(const Logits& expected, const Logits& logits, double far) {
  Difference all;
  REQUIRE(expected.size() == logits.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    double largest = 0, worst = 0;
    for (size_t j = 0; j < expected[i].size(); ++j) {
      largest = std::max(largest, std::abs(double{expected[i][j]}));
      const double d = std::abs(double{expected[i][j]} - logits[i][j]);
      worst = std::isfinite(d) ? std::max(worst, d) : INFINITY;
    }
    all.worst = std::max(all.worst, worst / largest);
    ++all.n_positions;
    all.n_far += worst > far * largest;
    const auto best = std::ranges::max_element(expected[i]) - expected[i].begin();
    const auto choice = std::ranges::max_element(logits[i]) - logits[i].begin();
    if (best == choice) continue;
    ++all.other_choices;
    all.far_choices += expected[i][best] - expected[i][choice] > far * largest;
  }
  return all;
}

// Any legal one.
inline Placement RandomPlacement(const ModelConfig& config, std::mt19937& random) {
  Placement placement = AllOnCpu(config);
  const auto memory = [&] { return random() % 2 ? Memory::kDevice : Memory::kCpu; };
  placement.head = memory();
  for (LayerPlacement& layer : placement.layers) {
    layer.attention = memory();
    if (layer.attention == Memory::kDevice) layer.kv = memory();
    const int64_t blocks = (config.n_ff + kHotBlock - 1) / kHotBlock;
    layer.n_hot = std::min<int64_t>(config.n_ff, random() % (blocks + 1) * kHotBlock);
  }
  if (random() % 2) placement.device_tokens = kPageTokens * (1 + static_cast<int>(random() % 2));
  return placement;
}

}  // namespace thermocline
