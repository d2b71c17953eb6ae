// The stages of FFNs whose up and down weights stand in bundles. Prompt rows multiply by panels made anew from bundles,
// in the same order and to the same bits as from panels that stand in memory; generated rows take neuron by neuron.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/bundle_ffn.h"
#include "cpu/linear.h"
#include "cpu/team.h"
#include "cpu/weights.h"

namespace thermocline {

// A slot of the step: rows of floats, stride floats apart.
struct SlotRows {
  float* data;
  int64_t stride;
  float* Row(int64_t i) const { return data + i * stride; }
};

class SparseFfn {
 public:
  // `weights` must outlive it. Without bundles it takes no memory.
  SparseFfn(const Weights& weights, const Model& model, Isa isa, FfnMode mode, int max_rows, int n_members);

  // The bundles that the op computes with: a gated FFN's product, activation or down; else null.
  const Bundles* Find(const Op& op) const;
  // Before a step: `prompt` for each row, whether it belongs to a prompt.
  void BeginStep(std::span<const uint8_t> prompt);
  bool has_prompt_rows() const { return !prompt_runs_.empty(); }

  // Keeps the input of a generated row, quantized to both planes, for Down.
  void KeepInput(const Bundles& bundles, int64_t row, const uint8_t* quantized);
  // up(prompt rows) = U x; x: quantized rows.
  template <typename Then>
  void RunUp(Team::Member& member, const Bundles& bundles, const uint8_t* x, SlotRows up, const Then& then) {
    member.For(
        bundles.shape().n_groups(), kUpGrain,
        [&](int64_t begin, int64_t end) {
          for (int64_t group = begin; group < end; ++group) PromptUp(bundles, member.index(), group, x, up);
        },
        then);
  }
  // out (+)= down of the prompt rows in x, quantized, and of the generated rows, whose gates stand in `gate` before the
  // activation.
  template <typename Then>
  void RunDown(Team::Member& member, const Bundles& bundles, const uint8_t* x, SlotRows gate, bool accumulate,
               SlotRows out, const Then& then) {
    const int64_t n_generated = std::ssize(generated_);
    if (has_prompt_rows()) {
      const auto body = [&](int64_t block, int64_t) { PromptDown(bundles, member.index(), block, x, accumulate, out); };
      if (n_generated == 0) return member.For(bundles.shape().down_blocks(), 1, body, then);
      member.For(bundles.shape().down_blocks(), 1, body);
    }
    for (int64_t first = 0; first < n_generated; first += kRowsTogether) {
      const int64_t n = std::min<int64_t>(kRowsTogether, n_generated - first);
      member.For(bundles.shape().n_slices(), 1,
                 [&](int64_t slice, int64_t) { GeneratedSlice(bundles, member.index(), slice, first, n, gate); });
      const auto merge = [&](int64_t begin, int64_t end) { Merge(bundles, first, n, begin, end, accumulate, out); };
      if (first + n == n_generated)
        member.For(bundles.shape().n_embd, kMergeGrain, merge, then);
      else
        member.For(bundles.shape().n_embd, kMergeGrain, merge);
    }
  }

  NeuronCount TakeCount();  // what generated rows read since the last call
  std::vector<std::pair<std::string, std::string>> Kernels() const;

 private:
  static constexpr int64_t kRowsTogether = 16;  // whose partial sums are kept at once
  static constexpr int64_t kUpGrain = 4, kMergeGrain = 512;
  struct Run {
    int64_t begin, n;
  };

  void PromptUp(const Bundles& bundles, int member, int64_t group, const uint8_t* x, SlotRows up) const;
  void PromptDown(const Bundles& bundles, int member, int64_t block, const uint8_t* x, bool accumulate,
                  SlotRows out) const;
  void GeneratedSlice(const Bundles& bundles, int member, int64_t slice, int64_t first, int64_t n, SlotRows gate);
  void Merge(const Bundles& bundles, int64_t first, int64_t n, int64_t begin, int64_t end, bool accumulate,
             SlotRows out) const;
  float* Partial(const Bundles& bundles, int64_t i) const {
    return partial_.as<float>() + i * bundles.shape().n_slices() * bundles.shape().n_outputs();
  }
  const BundleKernel& Kernel(const BundleShape& shape) const { return kernels_.at({shape.up, shape.down}); }

  const Weights& weights_;
  const bool skip_;
  std::map<std::pair<DType, DType>, BundleKernel> kernels_;  // up, down
  std::map<DType, LinearKernel> linear_;
  Buffer panels_;   // (members) of scratch_bytes_: panels made anew
  Buffer spread_;   // (max_rows) of SpreadBytes(n_embd)
  Buffer partial_;  // (kRowsTogether, n_slices, n_outputs)
  int64_t scratch_bytes_ = 0;
  struct alignas(64) MemberCount {
    NeuronCount count;
  };
  std::vector<MemberCount> counts_;  // by member
  std::vector<Run> prompt_runs_;
  std::vector<int64_t> generated_;
};

}  // namespace thermocline
