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
#include "cpu/predicted_gate.h"
#include "cpu/team.h"
#include "cpu/weights.h"

namespace thermocline {

// A slot of the step: rows of floats, stride floats apart.
struct SlotRows {
  float* data;
  int64_t stride;
  float* Row(int64_t i) const { return data + i * stride; }
};

// What generated rows missed by leaving neurons out.
struct FfnAudit {
  int64_t tokens = 0;
  // By layer, summed over tokens: |all - chosen|^2 / |all|^2 of what all neurons and the chosen ones add.
  std::vector<double> missed;
};

// Quantized inputs of a product, as cpu/activations.h has them.
struct QuantizedRows {
  const uint8_t* data;
  PromptForm prompt_form;  // of prompt rows
};

class SparseFfn {
 public:
  static constexpr int64_t kMergeGrain = 512;  // outputs whose partial sums are merged at a time

  // `weights` must outlive it. Without bundles it takes no memory.
  SparseFfn(const Weights& weights, const Model& model, Isa isa, const LoadOptions& load, int max_rows, int n_members);

  // The bundles that the op computes with: a gated FFN's product, activation or down; else null.
  const Bundles* Find(const Op& op) const;
  // Before a step: `prompt` for each row, whether it belongs to a prompt.
  void BeginStep(std::span<const uint8_t> prompt);
  void EndStep();  // after one that was not cancelled
  bool has_prompt_rows() const { return !prompt_runs_.empty(); }
  bool predicts(int layer) const { return !weights_.gate_rows(layer).empty(); }

  // Between steps: of each layer (n_layer), the |activation| above which a neuron fires; 0 at first.
  void SetLevels(std::span<const float> levels);
  // Between steps: of each layer (n_layer), the score above which its predictor names a neuron.
  void SetPredictorLevels(std::span<const float> levels);
  // Between steps: every n-th generated row, at most one of a step, is also computed with all neurons; 0: none. Its
  // result stays as it is.
  void SetAudit(int64_t every);
  FfnAudit TakeAudit();  // of the rows since the last call

  // Keeps the input of a generated row, quantized to both planes, for Down.
  void KeepInput(const Bundles& bundles, int64_t row, const uint8_t* quantized);
  // up(prompt rows) = U x.
  template <typename Then>
  void RunUp(Team::Member& member, const Bundles& bundles, QuantizedRows x, SlotRows up, const Then& then) {
    member.For(
        bundles.shape().n_groups(), kUpGrain,
        [&](int64_t begin, int64_t end) {
          for (int64_t group = begin; group < end; ++group) PromptUp(bundles, member.index(), group, x, up);
        },
        then);
  }
  // gate(all rows), of generated ones for the neurons that are predicted, else 0; up(prompt rows) = U x.
  template <typename Then>
  void RunPredictedGate(Team::Member& member, int layer, QuantizedRows x, SlotRows gate, SlotRows up,
                        const Then& then) {
    const int64_t n_generated = std::ssize(generated_);
    if (has_prompt_rows()) {
      RunUp(member, weights_.gate_rows(layer), x, gate, [] {});
      if (n_generated == 0) return RunUp(member, weights_.bundles(layer), x, up, then);
      RunUp(member, weights_.bundles(layer), x, up, [] {});
    }
    const int64_t audited = audited_ < 0 ? -1 : generated_[audited_];
    predicted_gate_.Run(member, predictor_of_layer_[layer],
                        {generated_runs_, x.data, spread_.data(), gate.data, gate.stride, audited}, count_pointers_,
                        then);
  }
  // out (+)= down of the prompt rows in x, quantized, and of the generated rows, whose act(gate) stand in `activation`.
  template <typename Then>
  void RunDown(Team::Member& member, int layer, QuantizedRows x, SlotRows activation, bool accumulate, SlotRows out,
               const Then& then) {
    const Bundles& bundles = weights_.bundles(layer);
    const int64_t n_generated = std::ssize(generated_);
    if (has_prompt_rows()) {
      const auto body = [&](int64_t block, int64_t) { PromptDown(bundles, member.index(), block, x, accumulate, out); };
      if (n_generated == 0) return member.For(bundles.shape().down_blocks(), 1, body, then);
      member.For(bundles.shape().down_blocks(), 1, body);
    }
    for (int64_t first = 0; first < n_generated; first += kRowsTogether) {
      const int64_t n = std::min<int64_t>(kRowsTogether, n_generated - first);
      member.For(bundles.shape().n_slices(), 1,
                 [&](int64_t slice, int64_t) { GeneratedSlice(layer, member.index(), slice, first, n, activation); });
      if (audited_ >= first && audited_ < first + n)
        member.For(bundles.shape().n_slices(), 1,
                   [&](int64_t slice, int64_t) { AuditSlice(layer, slice, activation); });
      const auto merge = [&](int64_t begin, int64_t end) { Merge(layer, first, n, begin, end, accumulate, out); };
      if (first + n == n_generated)
        member.For(bundles.shape().n_embd, kMergeGrain, merge, then);
      else
        member.For(bundles.shape().n_embd, kMergeGrain, merge);
    }
  }

  NeuronCount TakeCount();  // what generated rows read since the last call
  // Of so many generated rows each of the layer's neurons (n_ff of the bundles) fired, ever since, modulo 2^32; empty
  // where that is not counted (LoadOptions::count_firings).
  std::span<const uint32_t> fired(int layer) const { return fired_[layer]; }
  std::vector<std::pair<std::string, std::string>> Kernels() const;

 private:
  static constexpr int64_t kRowsTogether = 16;  // whose partial sums are kept at once
  static constexpr int64_t kUpGrain = 4;
  void AddPredictor(const GatedFfn& ffn, const Model& model, Isa isa, const LoadOptions& load);
  void PromptUp(const Bundles& bundles, int member, int64_t group, QuantizedRows x, SlotRows up) const;
  void PromptDown(const Bundles& bundles, int member, int64_t block, QuantizedRows x, bool accumulate,
                  SlotRows out) const;
  BundleRow Row(const Bundles& bundles, int64_t generated, SlotRows activation, float* partial) const;
  void GeneratedSlice(int layer, int member, int64_t slice, int64_t first, int64_t n, SlotRows activation);
  void AuditSlice(int layer, int64_t slice, SlotRows activation) const;
  void Merge(int layer, int64_t first, int64_t n, int64_t begin, int64_t end, bool accumulate, SlotRows out);
  void CompareSums(int layer, const float* chosen, int64_t begin, int64_t end);
  float* Partial(const Bundles& bundles, int64_t i) const {
    return partial_.as<float>() + i * bundles.shape().n_slices() * bundles.shape().n_outputs();
  }
  const BundleKernel& Kernel(const BundleShape& shape) const { return kernels_.at({shape.up, shape.down}); }

  const Weights& weights_;
  const bool skip_;
  PredictedGate predicted_gate_;
  std::vector<int> predictor_of_layer_;  // -1: none
  int n_predictors_ = 0;
  std::vector<float> levels_;                                // by layer
  std::map<std::pair<DType, DType>, BundleKernel> kernels_;  // up, down
  std::map<DType, LinearKernel> linear_;
  Buffer panels_;   // (members) of scratch_bytes_: panels made anew
  Buffer spread_;   // (max_rows) of SpreadBytes(n_embd)
  Buffer partial_;  // (kRowsTogether, n_slices, n_outputs)
  int64_t scratch_bytes_ = 0;
  struct alignas(64) MemberCount {
    NeuronCount count;
  };
  std::vector<MemberCount> counts_;           // by member
  std::vector<std::vector<uint32_t>> fired_;  // by layer; a neuron's is written by who has its slice
  std::vector<NeuronCount*> count_pointers_;
  std::vector<RowRun> prompt_runs_, generated_runs_;
  std::vector<int64_t> generated_;

  int64_t audit_every_ = 0, generated_seen_ = 0;
  int64_t audited_ = -1;  // index into generated_, or none in this step
  Buffer audit_partial_;  // (n_slices, n_outputs) of the audited row, with all neurons
  struct Squares {
    double difference = 0, all = 0;
  };
  std::vector<std::vector<Squares>> audit_squares_;  // by layer and merged chunk, of this step
  FfnAudit audit_;
};

}  // namespace thermocline
