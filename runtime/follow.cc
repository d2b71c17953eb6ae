#include "runtime/follow.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/bundle.h"
#include "cpu/bundle_ffn.h"
#include "models/error.h"
#include "models/packed_format.h"
#include "predictor/heat_order.h"
#include "predictor/replan.h"
#include "runtime/activation_rows.h"
#include "runtime/profile.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

using Counts = std::vector<std::vector<double>>;  // by layer (n_ff)

Counts Sum(std::span<const Firings> answers) {
  Counts sum(answers[0].fired.size());
  for (const Firings& answer : answers)
    for (size_t layer = 0; layer < sum.size(); ++layer) {
      sum[layer].resize(answer.fired[layer].size());
      for (size_t i = 0; i < sum[layer].size(); ++i) sum[layer][i] += answer.fired[layer][i];
    }
  return sum;
}

// Firings on the device's neurons, and all.
class Hits {
 public:
  void Add(const Firings& answer, const Placement& placement) {
    for (size_t layer = 0; layer < answer.fired.size(); ++layer) {
      const std::vector<uint32_t>& fired = answer.fired[layer];
      all_ += std::accumulate(fired.begin(), fired.end(), 0.0);
      for (int64_t i = 0; i < placement.layers[layer].n_hot; ++i) hot_ += fired[(*placement.orders[layer])[i]];
    }
  }
  double all() const { return all_; }
  double share() const { return all_ > 0 ? hot_ / all_ : 0; }

 private:
  double hot_ = 0, all_ = 0;
};

Placement HottestOf(const Counts& counts, int64_t n_hot, int unit) {
  Placement placement;
  for (const std::vector<double>& layer : counts) {
    placement.layers.push_back({.n_hot = n_hot});
    placement.orders.push_back(OrderByCounts(layer, unit));
  }
  return placement;
}

void Move(const Replan& plan, Placement& placement) {
  for (const LayerMove& move : plan.moves) placement.orders[move.layer] = move.order;
}

}  // namespace

std::vector<Firings> CountAnswers(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                                  std::span<const float> levels) {
  const auto n_ff = static_cast<size_t>(model.config.n_ff);
  const int64_t n = std::ssize(tokens), n_ctx = engine.n_ctx() / kAnswerTokens * kAnswerTokens;
  const ActivationRows rows(engine, model, kAnswerTokens);
  Progress progress("counting", "tokens");
  const int sequence = engine.NewSequence();
  std::vector<Firings> answers;
  for (int64_t at = 0; at < n;) {
    const int64_t position = at % n_ctx, n_rows = std::min<int64_t>(kAnswerTokens, n - at);
    if (position == 0) engine.Truncate(sequence, 0);
    Batch batch;
    for (int64_t i = 0; i < n_rows; ++i)
      batch.push_back({tokens[at + i], sequence, static_cast<int>(position + i), RowKind::kPrompt, false});
    engine.Step(batch);
    Firings& answer = answers.emplace_back(Firings{n_rows, {}});
    for (int layer = 0; layer < rows.n_layer(); ++layer) {
      std::vector<uint32_t>& fired = answer.fired.emplace_back(n_ff);
      for (int64_t row = 0; row < n_rows; ++row)
        for (size_t i = 0; i < n_ff; ++i) fired[i] += std::abs(rows.row(layer, row)[i]) > levels[layer];
    }
    at += n_rows;
    progress.Update(at, n);
  }
  engine.FreeSequence(sequence);
  return answers;
}

FollowedHits FollowHeat(std::span<const Firings> first, std::span<const Firings> second, double hot, int unit,
                        double neuron_bytes, double gate_bytes, double half_life) {
  const size_t n_layer = first[0].fired.size(), n_ff = first[0].fired[0].size();
  const auto n_hot = std::llround(hot * static_cast<double>(n_ff) / kHotBlock) * kHotBlock;
  const double cold = static_cast<double>(n_ff) - static_cast<double>(n_hot);
  const CpuReads reads{static_cast<double>(n_layer) * cold * gate_bytes, std::vector<double>(n_layer, neuron_bytes)};
  const Counts profile = Sum(first);
  const Placement kept = HottestOf(profile, n_hot, unit), own = HottestOf(Sum(second), n_hot, unit);
  Placement followed = kept, always = kept;
  Heat heat;  // as a chat has it after the first text, which nobody profiled
  heat.n_ff = static_cast<int64_t>(n_ff);
  heat.targets = {0};
  heat.layers.resize(n_layer);
  for (LayerHeat& layer : heat.layers) layer.fired.resize(n_ff);
  for (const Firings& answer : first) AddFirings(answer, half_life, heat.recent);
  Hits kept_hits, followed_hits, always_hits, own_hits;
  const std::vector<int> units(n_layer, unit);
  FollowedHits result{.hot = hot, .unit = unit, .n_answers = std::ssize(second)};
  for (const Firings& answer : second) {
    kept_hits.Add(answer, kept);
    followed_hits.Add(answer, followed);
    always_hits.Add(answer, always);
    own_hits.Add(answer, own);
    AddFirings(answer, half_life, heat.recent);
    const Heat now = WithRecent(heat);
    result.most_gain = std::max(result.most_gain, PlanMoves(kept, now, units, reads).gain);
    Move(PlanMoves(always, now, units, reads), always);
    const Replan plan = PlanMoves(followed, now, units, reads);
    if (plan.gain <= kReplanGain) continue;
    ++result.n_replans;
    Move(plan, followed);
  }
  double neurons = 0;
  for (const Firings& answer : second)
    neurons += static_cast<double>(answer.tokens) * static_cast<double>(n_layer * n_ff);
  result.silent = 1 - own_hits.all() / neurons;
  result.kept = kept_hits.share();
  result.followed = followed_hits.share();
  result.always = always_hits.share();
  result.own = own_hits.share();
  return result;
}

std::vector<FollowedHits> FollowTexts(const GgufFile& file, const Model& model, Engine& engine,
                                      std::span<const TokenId> first, std::span<const TokenId> second) {
  const std::vector<GatedFfn> ffns = FindSparseFfns(model, FfnMode::kThreshold);
  if (ffns.empty()) throw Error("{}: its FFNs stand in no form of which neurons are skipped", file.path());
  if (second.empty()) throw Error("the text of --then is empty");
  Heat heat = BeginHeat(file, model, first);
  if (heat.activation != Activation::kRelu) CountNeurons(engine, model, first, {}, heat);
  const Weight &gate = model.weights[ffns[0].gate], &up = model.weights[ffns[0].up];
  const BundleShape shape(BundleShape::UpType(up.type()), BundleShape::DownType(model.weights[ffns[0].down].type()),
                          up.k, up.n);
  const auto neuron_bytes = static_cast<double>(shape.bundle_bytes());
  const double gate_bytes = static_cast<double>(PackedBytes(gate.type(), gate.n, gate.k)) / static_cast<double>(gate.n);
  std::vector<FollowedHits> hits;
  const int lossless = LosslessUnit(model, 0);
  std::vector<int64_t> targets = {MiddleTarget(heat)};
  if (heat.activation != Activation::kRelu) targets.push_back(std::ssize(heat.targets) - 1);
  for (const int64_t target : targets) {
    std::vector<float> levels;
    for (const LayerHeat& layer : heat.layers) levels.push_back(layer.levels[target]);
    const std::vector<Firings> of_first = CountAnswers(engine, model, first, levels);
    const std::vector<Firings> of_second = CountAnswers(engine, model, second, levels);
    for (const int unit : lossless == 1 ? std::vector{1} : std::vector{lossless, 1})
      for (const double hot : {0.25, 0.5})
        hits.push_back(FollowHeat(of_first, of_second, hot, unit, neuron_bytes, gate_bytes));
  }
  return hits;
}

std::string DescribeFollowed(std::span<const FollowedHits> hits) {
  std::string text =
      "Firings of the second text on hot neurons, which are the hottest of the first text, or follow as in chat "
      "--adapt,\n"
      "or follow after every answer, or are the hottest of the second text; and what following would save the CPU of "
      "FFNs.\n"
      "silent   hot    moved by       kept   following   at any gain   their own   saves at most   re-planned\n";
  for (const FollowedHits& row : hits)
    text += fmt::format(
        "{:4.0f} %  {:3.0f} %  {:>12}  {:5.1f} %  {:8.1f} %  {:10.1f} %  {:8.1f} %  {:12.1f} %   {} of {} times\n",
        100 * row.silent, 100 * row.hot, row.unit == 1 ? "neurons" : fmt::format("blocks of {}", row.unit),
        100 * row.kept, 100 * row.followed, 100 * row.always, 100 * row.own, 100 * row.most_gain, row.n_replans,
        row.n_answers);
  return text;
}

}  // namespace thermocline
