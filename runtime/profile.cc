#include "runtime/profile.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "cpu/team.h"
#include "models/check.h"
#include "models/error.h"
#include "models/hash.h"
#include "models/limits.h"
#include "runtime/activation_rows.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

constexpr int kRows = 64;  // of one step, whose activations are kept until they are counted
constexpr int64_t kMinTokens = 4 * kRows;
constexpr int64_t kMaxLevelTokens = 2048;
constexpr std::chrono::milliseconds kFirstSave{500};

// Tokens from which levels are learned; none where zero is the level.
int64_t LevelTokens(const Heat& heat, int64_t n_tokens) {
  if (heat.activation == Activation::kRelu) return 0;
  return std::clamp<int64_t>(n_tokens / 8 / kRows * kRows, kRows, kMaxLevelTokens);
}

class Counter {
 public:
  Counter(Engine& engine, const Model& model, Heat& heat)
      : heat_(heat), team_(engine.team()), rows_(engine, model, kRows) {
    CHECK(rows_.n_layer() == std::ssize(heat.layers));
  }

  // Of the n rows that the engine has just run.
  void Count(int n, bool levels_known) {
    team_.Run([&](Team::Member& member) {
      member.For(rows_.n_layer(), 1, [&](int64_t layer, int64_t) { CountLayer(layer, n, levels_known); });
    });
    heat_.n_tokens += n;
    if (levels_known) heat_.n_counted += n;
    for (const LayerHeat& layer : heat_.layers)
      if (!std::isfinite(layer.sum_abs[0]))
        throw Error("the model's activations are not numbers: the model file is damaged, or its numbers overflow");
  }

 private:
  void CountLayer(int64_t index, int n, bool levels_known) {
    LayerHeat& layer = heat_.layers[static_cast<size_t>(index)];
    const float* rows = rows_.row(static_cast<int>(index), 0);
    const int64_t n_ff = heat_.n_ff;
    bool numbers = true;
    for (int64_t i = 0; i < n * n_ff; ++i) {
      numbers &= std::isfinite(rows[i]);
      ++layer.histogram[HeatBin(rows[i])];
    }
    if (!numbers) layer.sum_abs[0] = NAN;
    if (!levels_known) return;
    for (int row = 0; row < n; ++row) {
      const float* x = rows + row * n_ff;
      for (int64_t i = 0; i < n_ff; ++i) layer.sum_abs[i] += std::abs(x[i]);
      for (size_t target = 0; target < layer.levels.size(); ++target) {
        double* fired = layer.fired.data() + static_cast<int64_t>(target) * n_ff;
        for (int64_t i = 0; i < n_ff; ++i) fired[i] += std::abs(x[i]) > layer.levels[target];
      }
    }
  }

  Heat& heat_;
  Team& team_;
  ActivationRows rows_;
};

}  // namespace

uint64_t TextHash(std::span<const TokenId> tokens) {
  Hash hash;
  hash.Add({reinterpret_cast<const uint8_t*>(tokens.data()), tokens.size_bytes()});
  return hash.value();
}

Heat EmptyHeat(const GgufFile& file, const Model& model) {
  Heat heat;
  heat.identity = file.Identity();
  heat.model = std::filesystem::path(file.path()).stem().string();
  heat.activation = model.config.arch.activation;
  heat.n_ff = model.config.n_ff;
  heat.targets = {0};
  if (heat.activation != Activation::kRelu) heat.targets = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f, 0.7f};
  const size_t n_ff = static_cast<size_t>(heat.n_ff), n_targets = heat.targets.size();
  heat.layers.assign(static_cast<size_t>(model.config.n_layer), {.levels = std::vector<float>(n_targets),
                                                                 .fired = std::vector<double>(n_targets * n_ff),
                                                                 .sum_abs = std::vector<double>(n_ff),
                                                                 .histogram = std::vector<double>(kHeatBins)});
  return heat;
}

Heat BeginHeat(const GgufFile& file, const Model& model, std::span<const TokenId> tokens) {
  if (std::ssize(tokens) < kMinTokens)
    throw Error("the text has {} tokens; to learn from, it needs {}, and some thousands are better", tokens.size(),
                kMinTokens);
  if (std::ssize(tokens) > kMaxHeatTokens)
    throw Error("the text has {} tokens, more than the {} that are counted; take a part of it", tokens.size(),
                kMaxHeatTokens);
  Heat heat = EmptyHeat(file, model);
  heat.text_hash = TextHash(tokens);
  return heat;
}

void CountNeurons(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                  const std::function<void(const Heat&)>& on_save, Heat& heat, std::chrono::milliseconds save_every) {
  CHECK(heat.text_hash == TextHash(tokens) && heat.n_tokens <= std::ssize(tokens));
  const int64_t n = std::ssize(tokens), n_level = LevelTokens(heat, n), n_ctx = engine.n_ctx();
  Counter counter(engine, model, heat);
  Progress progress("profiling", "tokens");
  // Soon at first: little is lost of a short text too.
  auto next_save = std::chrono::steady_clock::now() + std::min<std::chrono::milliseconds>(save_every, kFirstSave);
  const int sequence = engine.NewSequence();
  Batch batch;
  // From the beginning of the piece in which the count goes on: keys and values in front of it are needed.
  for (int64_t at = heat.n_tokens / n_ctx * n_ctx; at < n;) {
    const int64_t position = at % n_ctx;
    if (position == 0) engine.Truncate(sequence, 0);
    int64_t rows = std::min({int64_t{kRows}, n_ctx - position, n - at});
    for (const int64_t border : {heat.n_tokens, n_level})
      if (at < border) rows = std::min(rows, border - at);
    batch.clear();
    for (int64_t i = 0; i < rows; ++i)
      batch.push_back({tokens[at + i], sequence, static_cast<int>(position + i), RowKind::kPrompt, false});
    engine.Step(batch);
    if (at == heat.n_tokens) counter.Count(static_cast<int>(rows), at >= n_level);
    at += rows;
    if (at == n_level && heat.n_tokens == n_level)
      for (size_t layer = 0; layer < heat.layers.size(); ++layer)
        for (size_t target = 0; target < heat.targets.size(); ++target)
          heat.layers[layer].levels[target] = heat.Level(static_cast<int>(layer), heat.targets[target]);
    progress.Update(at, n);
    if (on_save && at < n && std::chrono::steady_clock::now() >= next_save) {
      on_save(heat);
      next_save = std::chrono::steady_clock::now() + save_every;
    }
  }
  engine.FreeSequence(sequence);
}

}  // namespace thermocline
