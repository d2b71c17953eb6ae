#include "cpu/sparse_ffn.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cpu/activations.h"
#include "models/check.h"

namespace thermocline {
namespace {

constexpr int64_t kGroupsTogether = kUpBlockK / kBundleNeurons;  // of down, made into panels at once

}  // namespace

SparseFfn::SparseFfn(const Weights& weights, const Model& model, Isa isa, const LoadOptions& load, int max_rows,
                     int n_members)
    : weights_(weights),
      skip_(load.ffn != FfnMode::kBundleDense),
      predicted_gate_(isa, max_rows, n_members),
      predictor_of_layer_(static_cast<size_t>(model.config.n_layer), -1),
      levels_(static_cast<size_t>(model.config.n_layer)),
      counts_(n_members),
      fired_(levels_.size()),
      audit_squares_(levels_.size()) {
  for (MemberCount& member : counts_) count_pointers_.push_back(&member.count);
  audit_.missed.resize(levels_.size());
  int64_t spread = 0, partial = 0;
  for (const GatedFfn& ffn : weights.bundled()) {
    const BundleShape& shape = weights.bundles(ffn.layer).shape();
    if (load.count_firings) fired_[ffn.layer].resize(static_cast<size_t>(shape.n_ff));
    kernels_.try_emplace({shape.up, shape.down}, isa, shape);
    linear_.try_emplace(shape.up, isa, shape.up_format());
    linear_.try_emplace(shape.down, isa, shape.down_format());
    const Bundles& bundles = weights.bundles(ffn.layer);
    scratch_bytes_ = std::max({scratch_bytes_, kBundleNeurons / kPanelRows * bundles.UpPanelBytes(0),
                               bundles.DownPanelCount(0) * bundles.DownPanelBytes(kGroupsTogether)});
    spread = SpreadBytes(shape.n_embd);
    partial = std::max(partial, shape.n_slices() * shape.n_outputs());
    AddPredictor(ffn, model, isa, load);
    audit_squares_[ffn.layer].resize(static_cast<size_t>((shape.n_embd + kMergeGrain - 1) / kMergeGrain));
  }
  predicted_gate_.FinishAdding();
  panels_ = Buffer(n_members * scratch_bytes_, "one step");
  spread_ = Buffer(max_rows * spread, "one step");
  partial_ = Buffer(kRowsTogether * partial * static_cast<int64_t>(sizeof(float)), "one step");
  prompt_runs_.reserve(max_rows);
  generated_runs_.reserve(max_rows);
  generated_.reserve(max_rows);
}

void SparseFfn::AddPredictor(const GatedFfn& ffn, const Model& model, Isa isa, const LoadOptions& load) {
  const Bundles& gates = weights_.gate_rows(ffn.layer);
  if (gates.empty()) return;
  CHECK(load.predictors != nullptr);
  linear_.try_emplace(gates.shape().up, isa, gates.shape().up_format());
  scratch_bytes_ = std::max(scratch_bytes_, kBundleNeurons / kPanelRows * gates.UpPanelBytes(0));
  predictor_of_layer_[ffn.layer] = n_predictors_++;
  const NeuronPredictor& whole = load.predictors->at(static_cast<size_t>(ffn.layer));
  predicted_gate_.Add(gates, PredictorOf(whole, model.weights[ffn.gate]), model.config.arch.activation);
}

const Bundles* SparseFfn::Find(const Op& op) const {
  const bool of_ffn = op.in == Slot::kGate || (op.n_projections > 0 && op.projections[0].out == Slot::kGate);
  if (!of_ffn || op.layer < 0 || weights_.bundles(op.layer).empty()) return nullptr;
  return &weights_.bundles(op.layer);
}

void SparseFfn::BeginStep(std::span<const uint8_t> prompt) {
  if (kernels_.empty()) return;
  prompt_runs_.clear();
  generated_runs_.clear();
  generated_.clear();
  for (size_t i = 0; i < prompt.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    if (!prompt[i]) generated_.push_back(row);
    std::vector<RowRun>& runs = prompt[i] ? prompt_runs_ : generated_runs_;
    if (!runs.empty() && runs.back().begin + runs.back().n == row)
      ++runs.back().n;
    else
      runs.push_back({row, 1});
  }
  audited_ = -1;
  const auto n = std::ssize(generated_);
  if (audit_every_ > 0) {
    const int64_t next = audit_every_ - 1 - generated_seen_ % audit_every_;
    if (next < n) audited_ = next;
  }
  generated_seen_ += n;
}

void SparseFfn::EndStep() {
  if (audited_ < 0) return;
  ++audit_.tokens;
  for (size_t layer = 0; layer < audit_squares_.size(); ++layer) {
    Squares sum;
    for (const Squares& part : audit_squares_[layer]) {
      sum.difference += part.difference;
      sum.all += part.all;
    }
    if (sum.all > 0) audit_.missed[layer] += sum.difference / sum.all;
  }
}

void SparseFfn::SetLevels(std::span<const float> levels) {
  CHECK(levels.size() == levels_.size());
  levels_.assign(levels.begin(), levels.end());
}

void SparseFfn::SetPredictorLevels(std::span<const float> levels) {
  CHECK(levels.size() == levels_.size());
  std::vector<float> of_predictors;
  for (size_t layer = 0; layer < levels.size(); ++layer)
    if (predictor_of_layer_[layer] >= 0) of_predictors.push_back(levels[layer]);
  predicted_gate_.SetLevels(of_predictors);
}

void SparseFfn::SetAudit(int64_t every) {
  audit_every_ = kernels_.empty() ? 0 : every;
  generated_seen_ = 0;
  if (audit_every_ > 0 && audit_partial_.bytes() == 0)
    audit_partial_ = Buffer(partial_.bytes() / kRowsTogether, "the audit");
}

FfnAudit SparseFfn::TakeAudit() {
  FfnAudit taken = audit_;
  audit_ = {0, std::vector<double>(levels_.size())};
  return taken;
}

void SparseFfn::KeepInput(const Bundles& bundles, int64_t row, const uint8_t* quantized) {
  const int64_t k = bundles.shape().n_embd;
  SpreadActivations(quantized, k, spread_.data() + row * SpreadBytes(k));
}

void SparseFfn::PromptUp(const Bundles& bundles, int member, int64_t group, QuantizedRows x, SlotRows up) const {
  const BundleShape& shape = bundles.shape();
  uint8_t* panels = panels_.data() + member * scratch_bytes_;
  for (int64_t block = 0; block < shape.up_blocks(); ++block) {
    bundles.UpPanels(group, block, bundles.UpPanelBytes(block), panels);
    for (const RowRun& run : prompt_runs_) {
      const uint8_t* rows =
          x.data + run.begin * ActivationRowBytes(shape.n_embd) + PromptOffset(x.prompt_form, block * kUpBlockK);
      linear_.at(shape.up).Run(
          {panels, rows, ActivationRowBytes(shape.n_embd), up.Row(run.begin) + group * kBundleNeurons,
           up.stride * static_cast<int64_t>(sizeof(float)), kBundleNeurons / kPanelRows, bundles.UpBlocks(block),
           block > 0},
          run.n, x.prompt_form);
    }
  }
}

void SparseFfn::PromptDown(const Bundles& bundles, int member, int64_t block, QuantizedRows x, bool accumulate,
                           SlotRows out) const {
  const BundleShape& shape = bundles.shape();
  uint8_t* panels = panels_.data() + member * scratch_bytes_;
  for (int64_t group = 0; group < shape.n_groups(); group += kGroupsTogether) {
    const int64_t n = std::min(kGroupsTogether, shape.n_groups() - group);
    bundles.DownPanels(block, group, n, bundles.DownPanelBytes(n), panels);
    for (const RowRun& run : prompt_runs_) {
      const uint8_t* rows =
          x.data + run.begin * ActivationRowBytes(shape.n_ff) + PromptOffset(x.prompt_form, group * kBundleNeurons);
      linear_.at(shape.down)
          .Run({panels, rows, ActivationRowBytes(shape.n_ff), out.Row(run.begin) + block * kDownOutputs,
                out.stride * static_cast<int64_t>(sizeof(float)), bundles.DownPanelCount(block), (n + 1) / 2,
                accumulate || group > 0},
               run.n, x.prompt_form);
    }
  }
}

BundleRow SparseFfn::Row(const Bundles& bundles, int64_t generated, SlotRows activation, float* partial) const {
  const int64_t row = generated_[generated];
  return {activation.Row(row), spread_.data() + row * SpreadBytes(bundles.shape().n_embd), partial};
}

void SparseFfn::GeneratedSlice(int layer, int member, int64_t slice, int64_t first, int64_t n, SlotRows activation) {
  const Bundles& bundles = weights_.bundles(layer);
  std::array<BundleRow, kRowsTogether> rows;
  for (int64_t i = 0; i < n; ++i) rows[i] = Row(bundles, first + i, activation, Partial(bundles, i));
  RunSlice(Kernel(bundles.shape()), bundles, slice, {rows.data(), static_cast<size_t>(n)}, {levels_[layer], skip_},
           counts_[member].count, fired_[layer].empty() ? nullptr : fired_[layer].data());
}

void SparseFfn::AuditSlice(int layer, int64_t slice, SlotRows activation) const {
  constexpr Firing kAll{.level = -1, .skip = false};
  const Bundles& bundles = weights_.bundles(layer);
  BundleRow row = Row(bundles, audited_, activation, audit_partial_.as<float>());
  if (predicts(layer)) row.activation = predicted_gate_.audited_activation();
  NeuronCount not_counted;
  RunSlice(Kernel(bundles.shape()), bundles, slice, {&row, 1}, kAll, not_counted);
}

void SparseFfn::Merge(int layer, int64_t first, int64_t n, int64_t begin, int64_t end, bool accumulate, SlotRows out) {
  const Bundles& bundles = weights_.bundles(layer);
  for (int64_t i = 0; i < n; ++i) {
    MergeSlices(bundles.shape(), Partial(bundles, i), accumulate, begin, end, out.Row(generated_[first + i]));
    if (first + i == audited_) CompareSums(layer, Partial(bundles, i), begin, end);
  }
}

// Each chunk of outputs has its own sums, so that they do not depend on who took it.
void SparseFfn::CompareSums(int layer, const float* chosen, int64_t begin, int64_t end) {
  const BundleShape& shape = weights_.bundles(layer).shape();
  Squares squares;
  for (int64_t e = begin; e < end; ++e) {
    double sum = 0, all = 0;
    for (int64_t slice = 0; slice < shape.n_slices(); ++slice) {
      sum += chosen[slice * shape.n_outputs() + e];
      all += audit_partial_.as<float>()[slice * shape.n_outputs() + e];
    }
    squares.difference += (all - sum) * (all - sum);
    squares.all += all * all;
  }
  audit_squares_[layer][static_cast<size_t>(begin / kMergeGrain)] = squares;
}

NeuronCount SparseFfn::TakeCount() {
  NeuronCount sum;
  for (MemberCount& member : counts_) {
    sum.Add(member.count);
    member.count = {};
  }
  return sum;
}

std::vector<std::pair<std::string, std::string>> SparseFfn::Kernels() const {
  std::vector<std::pair<std::string, std::string>> names;
  for (const auto& [types, kernel] : kernels_)
    names.emplace_back(fmt::format("bundles {}, {}", Info(types.first).name, Info(types.second).name), kernel.name());
  for (const auto& entry : predicted_gate_.Kernels()) names.push_back(entry);
  return names;
}

}  // namespace thermocline
