// Which placement is fastest: an integer program over blocks of neurons, attention, KV and the output head, solved by
// COIN-OR CBC (after PowerInfer, arXiv:2312.12456 sec. 6.3, which places neurons alone).
//
// Seconds are those of one generated token. CPU and device share an FFN and work at the same time; everything else is
// one after the other. The hidden state waits where the layer's attention was, and is there again after its FFN.
#pragma once

#include <cstdint>
#include <vector>

#include "predictor/placement.h"

namespace thermocline {

// What one of both memories takes for a part.
struct PartCost {
  double cpu_s = 0, device_s = 0;
  int64_t bytes = 0;
};

struct LayerCost {
  PartCost attention;  // norm, q, k, v, output product
  PartCost kv;         // attention over the tokens kept
  PartCost ffn;        // of a side that has any neuron: norm, quantization, launches; no bytes
  // In blocks of kHotBlock, hottest first: cpu_s never rises, and all else is the same but for the last one, which may
  // be shorter. The first ones are placed first.
  std::vector<PartCost> neurons;
};

struct PlacementProblem {
  int64_t n_ff = 0;
  std::vector<LayerCost> layers;
  PartCost head;
  double merge_s = 0;     // to the other side and back: an FFN of both, or one away from the attention; KV likewise
  double handover_s = 0;  // one way, where the next layer's attention or the head is on the other side
  int64_t cpu_only_bytes = 0;                       // of tables that stay with the CPU
  bool cpu_keeps_head = false;                      // the head's weights are among them: on the device they are a copy
  int64_t cpu_bytes = INT64_MAX, device_bytes = 0;  // that may be taken
};

// Of a placement of that shape.
double SecondsPerToken(const PlacementProblem& problem, const Placement& placement);
int64_t BytesOnDevice(const PlacementProblem& problem, const Placement& placement);
int64_t BytesOnCpu(const PlacementProblem& problem, const Placement& placement);
int64_t BytesInAll(const PlacementProblem& problem);  // of both memories, nothing twice
bool Fits(const PlacementProblem& problem, const Placement& placement);

struct SolverOptions {
  bool layers_only = false;  // a layer as a whole on one side, as other programs split models
  double gap = 2e-3;         // the search ends when no placement can be faster by more than this share
  double max_seconds = 3;    // of computing; or then
};
struct SolvedPlacement {
  Placement placement;
  double seconds = 0;  // per token
  double bound = 0;    // no placement takes less
};
// Throws Error where the model fits into both memories together in no way.
SolvedPlacement SolvePlacement(const PlacementProblem& problem, const SolverOptions& options);

}  // namespace thermocline
