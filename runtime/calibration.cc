#include "runtime/calibration.h"

#include <algorithm>
#include <cmath>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/check.h"
#include "models/error.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

// Of the memory that is free, second moments may take this part.
constexpr double kMemoryPart = 0.5;

// What one group of products reads.
struct Input {
  WeightId key;
  int64_t k;
  std::vector<float> rows;  // (kCalibrationRows, k) of the step at hand
  std::vector<float> gram;  // (k, k), upper triangle; or (k), its diagonal
};

void SumUp(Input& input, int n_rows, bool full, const VectorOps& ops, Team& team) {
  const int64_t k = input.k;
  float* rows = input.rows.data();
  if (!full) {
    for (int row = 0; row < n_rows; ++row)
      for (int64_t i = 0; i < k; ++i) input.gram[i] += rows[row * k + i] * rows[row * k + i];
    return;
  }
  team.Run([&](Team::Member& member) {
    member.For(k, kGramRows, [&](int64_t begin, int64_t end) {
      ops.add_outer_products(
          {rows + begin, k, rows + begin, k, input.gram.data() + begin * k + begin, k, end - begin, k - begin, n_rows});
    });
  });
}

}  // namespace

// Of the mean diagonal. Second moments of k columns from n tokens are too sure of their small directions. On SmolLM2,
// its hidden state rotated, all of it in IQ4_NL and learned from 7690 tokens, the KL on 1020 predictions of other text
// is 0.058, 0.063 and 0.069 with 0.6, 1.2 and 2.4 k / n (each block rounded once, in order). The squared error of
// outputs on 30,760 other tokens, of 16 tensors, is least between 0.3 and 0.6 k / n, and within 1.3 % of that from 0.15
// to 1.2.
float Damping(int64_t k, int64_t n_tokens) {
  return std::clamp(0.6f * static_cast<float>(k) / static_cast<float>(n_tokens), 0.001f, 1.0f);
}

std::vector<float> EvenOut(float* rows, int64_t k, int n_rows) {
  std::vector<double> squares(static_cast<size_t>(n_rows));
  double log_sum = 0;
  for (int row = 0; row < n_rows; ++row) {
    for (int64_t i = 0; i < k; ++i) squares[row] += double{rows[row * k + i]} * rows[row * k + i];
    if (!std::isfinite(squares[row]))
      throw Error("the model's activations are not numbers: the model file is damaged, or its numbers overflow");
    log_sum += std::log(squares[row] + 1e-30);
  }
  const double typical = std::exp(log_sum / n_rows);
  std::vector<float> factors(static_cast<size_t>(n_rows), 1.0f);
  for (int row = 0; row < n_rows; ++row) {
    if (squares[row] <= typical) continue;
    factors[row] = static_cast<float>(std::sqrt(typical / squares[row]));
    for (int64_t i = 0; i < k; ++i) rows[row * k + i] *= factors[row];
  }
  return factors;
}

Calibration::Calibration(const Model& model, Engine& engine, std::span<const TokenId> tokens, int n_ctx,
                         bool want_feedback, WeightId only) {
  std::vector<Input> inputs;
  int64_t gram_bytes = 0;
  for (const Op& op : model.program.ops) {
    if (op.kind != OpKind::kLinear) continue;
    const WeightId key = op.projections[0].weight;
    if (only >= 0 && key != only) continue;
    for (int i = 0; i < op.n_projections; ++i) key_of_[op.projections[i].weight] = key;
    inputs.push_back({.key = key, .k = model.weights[key].k, .rows{}, .gram{}});
    gram_bytes += inputs.back().k * inputs.back().k * static_cast<int64_t>(sizeof(float));
  }
  has_feedback_ = want_feedback && static_cast<double>(gram_bytes) <
                                       kMemoryPart * static_cast<double>(DetectTopology().memory_available_bytes);
  std::map<WeightId, Input*> by_key;
  for (Input& input : inputs) {
    input.rows.resize(static_cast<size_t>(kCalibrationRows * input.k));
    input.gram.resize(static_cast<size_t>(has_feedback_ ? input.k * input.k : input.k));
    by_key[input.key] = &input;
  }

  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  Team team(engine.n_threads());
  engine.SetInputTap([&](const Op& op, int64_t row, std::span<const float> x) {
    if (op.kind != OpKind::kLinear) return;
    const auto input = by_key.find(op.projections[0].weight);
    if (input == by_key.end()) return;
    const int64_t k = input->second->k;
    std::copy(x.begin(), x.begin() + k, input->second->rows.begin() + row * k);
  });
  Progress progress("calibrating", "tokens");
  const int sequence = engine.NewSequence();
  Batch batch;
  for (size_t at = 0; at < tokens.size();) {
    if (engine.Length(sequence) >= n_ctx) engine.Truncate(sequence, 0);
    batch.clear();
    const int position = engine.Length(sequence);
    for (; static_cast<int>(batch.size()) < std::min(kCalibrationRows, n_ctx - position) && at < tokens.size(); ++at)
      batch.push_back({tokens[at], sequence, position + static_cast<int>(batch.size()), RowKind::kPrompt, true});
    engine.Step(batch);
    for (Input& input : inputs) {
      EvenOut(input.rows.data(), input.k, static_cast<int>(batch.size()));
      SumUp(input, static_cast<int>(batch.size()), has_feedback_, ops, team);
    }
    progress.Update(static_cast<int64_t>(at), static_cast<int64_t>(tokens.size()));
  }
  n_tokens_ = static_cast<int64_t>(tokens.size());
  engine.FreeSequence(sequence);
  engine.SetInputTap({});

  for (Input& input : inputs) inputs_[input.key];
  team.Run([&](Team::Member& member) {
    member.For(static_cast<int64_t>(inputs.size()), 1, [&](int64_t i, int64_t) {
      Input& input = inputs[i];
      for (float& sum : input.gram) sum /= static_cast<float>(n_tokens_);
      Feedback& feedback = inputs_.at(input.key);
      if (has_feedback_)
        feedback = FactorFeedback(std::move(input.gram), input.k, Damping(input.k, n_tokens_), ops);
      else
        feedback = {.k = input.k, .u{}, .weights = std::move(input.gram), .norms{}, .scale = 1};
    });
  });
}

const Feedback* Calibration::Find(WeightId id) const {
  const auto key = key_of_.find(id);
  return key == key_of_.end() ? nullptr : &inputs_.at(key->second);
}

}  // namespace thermocline
