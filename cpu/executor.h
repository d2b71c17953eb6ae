// Executes a model's op descriptors on the CPU: owns the packed weights and the scratch of one step, knows nothing of
// sequences.
//
// The ops become stages: products and attention are shared out among the team in chunks; everything that works row by
// row between two of them (norms, rope, quantization ...) is one stage over rows, which for a row or two runs on the
// last arriver of the barrier in front instead.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/isa.h"
#include "cpu/peer.h"
#include "cpu/sparse_ffn.h"
#include "cpu/team.h"
#include "cpu/trace.h"
#include "cpu/weights.h"
#include "models/gguf.h"
#include "models/kv_layout.h"
#include "models/model.h"

namespace thermocline {

// Consecutive rows of one sequence.
struct SpanView {
  int first_row, n_rows;
  int first_position;
  uint8_t* const* pages[kLayerKinds];  // pages[kind][position / 64]; null where freed
};

struct StepView {
  std::span<const int32_t> tokens;     // per row
  std::span<const int32_t> positions;  // per row
  std::span<const uint8_t> prompt;     // per row: of the prompt class (0: decode class)
  std::span<const SpanView> spans;     // cover all rows in order
  std::span<const int32_t> wanted;     // rows whose logits are wanted, ascending
  int max_members = kMaxThreads;       // of the team, that work on it
  bool streamed = false;               // by the second program that the executor was given
};

// Sees row `row` of what a kLinear op reads (of a head: the row-th wanted row), and of the gates or ups that an
// activation reads; called by several members at once.
using InputTap = std::function<void(const Op& op, int64_t row, std::span<const float> x)>;

class CpuExecutor {
 public:
  // Loads all weights, as cpu/weights.h says. `tracer`, unless null, learns what every step does. `peer` computes the
  // other half where the model is one of a split; else null. streamed: another list of ops over some of the weights,
  // for steps in which more of them is the peer's; or null.
  CpuExecutor(const GgufFile& file, const Model& model, Team& team, Isa isa, int max_rows, const LoadOptions& load,
              const KvLayout& kv_layout, Tracer* tracer, Peer* peer = nullptr, const Program* streamed = nullptr);
  ~CpuExecutor();

  // False when `cancel` became true, or the peer is lost: the step was left at some op, logits are void. Throws Error
  // when weights were lost under the map (Weights::CheckIntact).
  bool Run(const StepView& step, const std::atomic<bool>& cancel);
  // (n_vocab) of the i-th wanted row.
  std::span<const float> Logits(int i) const;

  void SetInputTap(InputTap tap);  // between runs, without a tracer; empty: none, which costs nothing

  // Between runs, as cpu/sparse_ffn.h says.
  void SetNeuronLevels(std::span<const float> levels);
  void SetPredictorLevels(std::span<const float> levels);
  void SetAudit(int64_t every);
  FfnAudit TakeAudit();
  NeuronCount TakeNeuronCount();  // what generated rows read of bundles since the last call
  std::span<const uint32_t> fired(int layer) const;
  // Between runs, as cpu/weights.h says.
  std::optional<StagedFfn> StageFfn(const Model& model, int layer, const std::atomic<bool>& stop) const;
  void ReplaceFfn(StagedFfn staged) noexcept;
  int64_t weight_bytes() const;
  std::vector<std::pair<std::string, std::string>> Kernels() const;  // op, kernel it takes

  static int64_t WeightBytes(const Model& model);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
