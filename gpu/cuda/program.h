// A list of device ops as launches of kernels: which neighbours are fused, and what scratch they share.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "gpu/cuda/attention.h"
#include "gpu/cuda/panel_stream.h"
#include "gpu/cuda/transfer.h"
#include "gpu/device.h"

namespace thermocline::cuda {

// Numbers that launches depend on; equal ones launch the same.
struct StepShape {
  int n_rows = 0, n_wanted = 0, n_blocks = 0;
  bool prompt = false;  // any row is of the prompt class
};

// Where the tables of a step are on the device; fixed.
struct StepAddresses {
  const uint32_t* step = nullptr;  // its number
  const int32_t *position = nullptr, *span_of_row = nullptr, *wanted = nullptr;
  const uint8_t* prompt = nullptr;
  const RowBlock* blocks = nullptr;
  const uint64_t* pages[kLayerKinds] = {};
  int max_pages = 0;
};

// What programs need besides, all the same, since their steps follow each other.
struct Scratch {
  uint8_t* activations = nullptr;  // of the input of the product at hand
  float* limits = nullptr;         // (max_rows)
  float* attention = nullptr;      // AttentionScratch
  float* logits = nullptr;         // (logit_rows, vocabulary)
  uint32_t* counter = nullptr;
  int logit_rows = 0;
};
// allocate(bytes, what): memory of the device, zeroed.
Scratch TakeScratch(const std::vector<std::vector<DeviceOp>>& programs, const DeviceLimits& limits,
                    const std::function<DeviceAddress(int64_t, const char*)>& allocate);

class Program {
 public:
  static constexpr int kFlagStride = 16;  // words from flag to flag: a cache line

  // panels: null where no op is a kReceivePanels. Throws DeviceError for what no kernel computes.
  Program(std::vector<DeviceOp> ops, const StepAddresses& step, volatile uint32_t* flags, const Scratch& scratch,
          PanelStream* panels);

  // Rows of a RowBlock of the program's attention; 1 where it has none.
  int rows_per_block() const { return rows_per_block_; }
  const std::vector<DeviceOp>& ops() const { return ops_; }
  bool streams() const { return panels_ != nullptr; }
  // recorded: into a graph. One step at a time.
  void Enqueue(const Queue& queue, const StepShape& shape, bool recorded) const;

 private:
  void Check(const DeviceOp& op) const;
  // Whether op i leaves its output rounded, too, for the product behind it.
  bool Rounds(size_t i, const StepShape& shape) const;
  // Whether the product in front of op i, a product, has read the same, and left it rounded.
  bool IsRounded(size_t i) const;
  void EnqueueOp(const Queue& queue, size_t i, const StepShape& shape) const;
  void EnqueueLinear(const Queue& queue, size_t i, const StepShape& shape) const;
  void EnqueueLogits(const Queue& queue, size_t i, const StepShape& shape) const;
  void EnqueueAttention(const Queue& queue, const DeviceOp& op, const StepShape& shape) const;
  void Multiply(const Queue& queue, const DeviceOp& op, const uint8_t* x, int m) const;
  StepTables Tables(const StepShape& shape) const;
  Flag FlagAt(int flag) const { return {flags_ + flag * kFlagStride, step_.step}; }
  Flag FlagOf(const DeviceOp& op) const { return FlagAt(op.flag); }

  std::vector<DeviceOp> ops_;
  StepAddresses step_;
  volatile uint32_t* flags_;
  Scratch scratch_;
  PanelStream* panels_;
  int rows_per_block_ = 1;
};

}  // namespace thermocline::cuda
