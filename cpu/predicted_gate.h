// The gates of generated rows where a predictor says which neurons may fire (DESIGN form F3): two small products give
// every neuron a score, and the gate is read for those above their cut. All other gates are 0, which no activation of
// a gate lets through.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/bundle_ffn.h"
#include "cpu/linear.h"
#include "cpu/neuron_predictor.h"
#include "cpu/team.h"
#include "cpu/vector_ops.h"

namespace thermocline {

// Consecutive rows of a step.
struct RowRun {
  int64_t begin, n;
};

class PredictedGate {
 public:
  // Rows of a step: activations x (ActivationRowBytes(n_embd) each), the same spread (SpreadBytes(n_embd) each), and
  // where their gates go (stride floats apart).
  struct Rows {
    std::span<const RowRun> runs;
    const uint8_t *x, *spread;
    float* gate;
    int64_t gate_stride;
    int64_t audited;  // the row whose neurons are all wanted besides, or -1
  };

  PredictedGate(Isa isa, int max_rows, int n_members);
  PredictedGate(const PredictedGate&) = delete;

  // At plan time, once for each layer in order; `gates` must outlive it.
  void Add(const Bundles& gates, const NeuronPredictor& predictor, Activation activation);
  void FinishAdding();

  bool empty() const { return layers_.empty(); }
  // Between steps: of the layers in order.
  void SetLevels(std::span<const float> levels);

  template <typename Then>
  void Run(Team::Member& member, int layer, const Rows& rows, std::span<NeuronCount* const> counts, const Then& then) {
    const Layer& at = layers_[static_cast<size_t>(layer)];
    member.For(
        at.in.n_panels(), kReduceGrain, [&](int64_t begin, int64_t end) { Reduce(at, rows, begin, end); },
        [&] { QuantizeReduced(at, rows); });
    member.For(
        at.gates->shape().n_slices(), 1,
        [&](int64_t slice, int64_t) {
          RunSlice(at, rows, slice, member.index(), *counts[static_cast<size_t>(member.index())]);
        },
        then);
  }
  // act(gate) of all neurons of the audited row, after Run.
  const float* audited_activation() const { return audited_.as<float>(); }

  std::vector<std::pair<std::string, std::string>> Kernels() const;

 private:
  static constexpr int64_t kReduceGrain = 2;    // panels
  static constexpr int64_t kRowsTogether = 16;  // whose scores are kept at once

  struct Layer {
    const Bundles* gates;
    const BundleKernel* kernel;
    PackedMatrix in, out;
    std::vector<float> bias, cut;  // (n_ff): score > cut = level - bias
    Activation activation;
    bool relu;  // between in and out
  };

  void Reduce(const Layer& layer, const Rows& rows, int64_t begin, int64_t end) const;
  void QuantizeReduced(const Layer& layer, const Rows& rows) const;
  void RunSlice(const Layer& layer, const Rows& rows, int64_t slice, int member, NeuronCount& count) const;
  void ReadGates(const Layer& layer, const Rows& rows, int64_t row, int64_t slice, std::span<const uint32_t> chosen,
                 float* gate) const;
  void Audit(const Layer& layer, const Rows& rows, int64_t slice) const;
  const uint8_t* Reduced(int64_t row) const { return reduced_q_.data() + row * reduced_q_bytes_; }

  const Isa isa_;
  const VectorOps& ops_;
  const int max_rows_, n_members_;
  std::optional<LinearKernel> linear_;                                    // once there is a predictor
  std::vector<std::pair<DType, std::unique_ptr<BundleKernel>>> kernels_;  // by the gates' type
  std::vector<Layer> layers_;
  int64_t reduced_stride_ = 0, reduced_q_bytes_ = 0;
  Buffer reduced_;    // (max_rows, reduced_stride_): in x
  Buffer reduced_q_;  // (max_rows) of reduced_q_bytes_: the same, quantized
  Buffer scores_;     // (members, kRowsTogether, kSliceNeurons)
  Buffer audited_;    // (n_ff)
};

}  // namespace thermocline
