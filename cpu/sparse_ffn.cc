#include "cpu/sparse_ffn.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "cpu/activations.h"

namespace thermocline {
namespace {

constexpr int64_t kGroupsTogether = kUpBlockK / kBundleNeurons;  // of down, made into panels at once

}  // namespace

SparseFfn::SparseFfn(const Weights& weights, const Model& model, Isa isa, FfnMode mode, int max_rows, int n_members)
    : weights_(weights), skip_(mode == FfnMode::kExact), counts_(n_members) {
  int64_t spread = 0, partial = 0;
  for (int layer = 0; layer < model.config.n_layer; ++layer) {
    const Bundles& bundles = weights.bundles(layer);
    if (bundles.empty()) continue;
    const BundleShape& shape = bundles.shape();
    kernels_.try_emplace({shape.up, shape.down}, isa, shape);
    linear_.try_emplace(shape.up, isa, shape.up_format());
    linear_.try_emplace(shape.down, isa, shape.down_format());
    scratch_bytes_ = std::max({scratch_bytes_, kBundleNeurons / kPanelRows * bundles.UpPanelBytes(0),
                               bundles.DownPanelCount(0) * bundles.DownPanelBytes(kGroupsTogether)});
    spread = SpreadBytes(shape.n_embd);
    partial = std::max(partial, shape.n_slices() * shape.n_outputs());
  }
  panels_ = Buffer(n_members * scratch_bytes_, "one step");
  spread_ = Buffer(max_rows * spread, "one step");
  partial_ = Buffer(kRowsTogether * partial * static_cast<int64_t>(sizeof(float)), "one step");
  prompt_runs_.reserve(max_rows);
  generated_.reserve(max_rows);
}

const Bundles* SparseFfn::Find(const Op& op) const {
  const bool of_ffn = op.in == Slot::kGate || (op.n_projections > 0 && op.projections[0].out == Slot::kGate);
  if (!of_ffn || op.layer < 0 || weights_.bundles(op.layer).empty()) return nullptr;
  return &weights_.bundles(op.layer);
}

void SparseFfn::BeginStep(std::span<const uint8_t> prompt) {
  if (kernels_.empty()) return;
  prompt_runs_.clear();
  generated_.clear();
  for (size_t i = 0; i < prompt.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    if (!prompt[i])
      generated_.push_back(row);
    else if (!prompt_runs_.empty() && prompt_runs_.back().begin + prompt_runs_.back().n == row)
      ++prompt_runs_.back().n;
    else
      prompt_runs_.push_back({row, 1});
  }
}

void SparseFfn::KeepInput(const Bundles& bundles, int64_t row, const uint8_t* quantized) {
  const int64_t k = bundles.shape().n_embd;
  SpreadActivations(quantized, k, spread_.data() + row * SpreadBytes(k));
}

void SparseFfn::PromptUp(const Bundles& bundles, int member, int64_t group, const uint8_t* x, SlotRows up) const {
  const BundleShape& shape = bundles.shape();
  uint8_t* panels = panels_.data() + member * scratch_bytes_;
  for (int64_t block = 0; block < shape.up_blocks(); ++block) {
    bundles.UpPanels(group, block, panels);
    for (const Run& run : prompt_runs_) {
      const uint8_t* rows = x + run.begin * ActivationRowBytes(shape.n_embd) + ActivationOffset(block * kUpBlockK, 0);
      linear_.at(shape.up).Run(
          {panels, rows, ActivationRowBytes(shape.n_embd), up.Row(run.begin) + group * kBundleNeurons,
           up.stride * static_cast<int64_t>(sizeof(float)), kBundleNeurons / kPanelRows, bundles.UpBlocks(block),
           block > 0},
          run.n);
    }
  }
}

void SparseFfn::PromptDown(const Bundles& bundles, int member, int64_t block, const uint8_t* x, bool accumulate,
                           SlotRows out) const {
  const BundleShape& shape = bundles.shape();
  uint8_t* panels = panels_.data() + member * scratch_bytes_;
  for (int64_t group = 0; group < shape.n_groups(); group += kGroupsTogether) {
    const int64_t n = std::min(kGroupsTogether, shape.n_groups() - group);
    bundles.DownPanels(block, group, n, panels);
    for (const Run& run : prompt_runs_) {
      const uint8_t* rows =
          x + run.begin * ActivationRowBytes(shape.n_ff) + ActivationOffset(group * kBundleNeurons, 0);
      linear_.at(shape.down)
          .Run({panels, rows, ActivationRowBytes(shape.n_ff), out.Row(run.begin) + block * kDownOutputs,
                out.stride * static_cast<int64_t>(sizeof(float)), bundles.DownPanelCount(block), (n + 1) / 2,
                accumulate || group > 0},
               run.n);
    }
  }
}

void SparseFfn::GeneratedSlice(const Bundles& bundles, int member, int64_t slice, int64_t first, int64_t n,
                               SlotRows gate) {
  std::array<BundleRow, kRowsTogether> rows;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = generated_[first + i];
    rows[i] = {gate.Row(row), spread_.data() + row * SpreadBytes(bundles.shape().n_embd), Partial(bundles, i)};
  }
  RunSlice(Kernel(bundles.shape()), bundles, slice, {rows.data(), static_cast<size_t>(n)}, skip_,
           counts_[member].count);
}

void SparseFfn::Merge(const Bundles& bundles, int64_t first, int64_t n, int64_t begin, int64_t end, bool accumulate,
                      SlotRows out) const {
  for (int64_t i = 0; i < n; ++i)
    MergeSlices(bundles.shape(), Partial(bundles, i), accumulate, begin, end, out.Row(generated_[first + i]));
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
  return names;
}

}  // namespace thermocline
