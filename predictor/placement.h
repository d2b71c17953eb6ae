// Which memory of the machine holds what of a model.
//
// An FFN is split by neuron: the device computes neurons [0, n_hot), in the file's order or hottest first, the CPU the
// rest, and the two partial sums of n_embd floats meet once per layer. Everything that a placement does not name (the
// embedding, which is gathered) stays with the CPU; norms run where what reads them does.
#pragma once

#include <cstdint>
#include <vector>

#include "models/kv_layout.h"
#include "models/model.h"

namespace thermocline {

enum class Memory : uint8_t { kCpu, kDevice };

inline constexpr int kHotBlock = 64;  // neurons that are placed together: two groups of cpu/bundle.h

struct LayerPlacement {
  int64_t n_hot = 0;  // neurons [0, n_hot) of gate, up and down on the device: a multiple of kHotBlock, or n_ff
  Memory attention = Memory::kCpu;  // weights of q, k, v and the output product
  Memory kv = Memory::kCpu;         // pages, and attention over them; on the device only where `attention` is
};

inline constexpr int kAllTokens = INT32_MAX;

struct Placement {
  std::vector<LayerPlacement> layers;  // all of the model
  Memory head = Memory::kCpu;          // the last norm and the output product
  NeuronOrders orders{};               // in which n_hot counts
  // Where a layer without a window has `kv` on the device, its pages hold the first so many tokens of each sequence
  // there, a multiple of kPageTokens, and the CPU has the pages of later ones, and attends to them.
  int device_tokens = kAllTokens;

  bool SplitsKv() const { return device_tokens != kAllTokens; }
};

// Everything with the CPU.
Placement AllOnCpu(const ModelConfig& config);
// Whether it is a placement of such a model: its layers, n_hot, kv and orders as said above.
bool IsPlacementOf(const Placement& placement, const ModelConfig& config);

}  // namespace thermocline
