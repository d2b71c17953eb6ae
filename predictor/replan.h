// Which neurons should change places between CPU and device, now that others fire than those by which they were placed.
#pragma once

#include <memory>
#include <vector>

#include "models/neuron_order.h"
#include "predictor/heat.h"
#include "predictor/placement.h"

namespace thermocline {

// It is worth the trouble where the CPU then reads less by so much.
inline constexpr double kReplanGain = 0.05;

// What the CPU reads from memory for a generated token.
struct CpuReads {
  double always = 0;                 // bytes, whatever fires
  std::vector<double> neuron_bytes;  // by layer, of a neuron that fires; 0: all are read
};

struct LayerMove {
  int layer;
  std::shared_ptr<const NeuronOrder> order;
  double saved_bytes;  // of a token
};

struct Replan {
  double hits = 0, best_hits = 0;  // the share of firings that fall on the device's neurons, now and when all moved
  // The share of the bytes that the CPU need not read any more, which is the share of the time as far as the device
  // waits for the CPU.
  double gain = 0;
  std::vector<LayerMove> moves;  // that save anything, the most first
};

// By ProfileCounts of `heat`. units: by layer, how many neurons move as one. How many neurons of a layer the device
// has, stays.
Replan PlanMoves(const Placement& placement, const Heat& heat, const std::vector<int>& units, const CpuReads& reads);

}  // namespace thermocline
