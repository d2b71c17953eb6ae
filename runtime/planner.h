// Plans of a model for one machine: what `plan` measures, tries and compares.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "gpu/device.h"
#include "predictor/heat_order.h"
#include "predictor/placement_cost.h"
#include "predictor/placement_solver.h"

namespace thermocline {

struct PlanRequest {
  const Model& model;
  const Heat* heat;  // null: nothing is known of which neurons fire
  std::optional<FfnMode>
      mode;  // kDense, kExact or kPredicted; otherwise that of the first two which the CPU is faster in
  KvTypes kv_types{};
  int n_ctx = 0, n_threads = 0;
  int64_t cpu_bytes = 0;
  Device* device = nullptr;  // whose free_bytes count, and which knows what it can hold; null: none
  DeviceRates rates{};
  bool layers_only = false;
  // In which order neurons may stand; nullopt: the file's. The others need `heat`, and FFNs that skip silent neurons.
  std::vector<std::optional<HeatOrder>> orders = {std::nullopt, HeatOrder::kBlocks, HeatOrder::kNeurons};
};

struct Plan {
  const char* name;
  SolvedPlacement solved;           // with the orders that it counts on
  int64_t cpu_bytes, device_bytes;  // of weights, keys and values
  int64_t step_bytes;               // of the device's memory, for rows of a step
};

// The first is the plan, the others what it is compared with.
struct Plans {
  FfnMode mode{};
  std::optional<HeatOrder> by;  // in which order the plan's neurons stand; nullopt: in the file's
  std::vector<Plan> all;
  std::vector<std::string> notes;  // what was left out of the comparison, and why
};

// Measures the CPU, which takes seconds. Throws Error where the model fits nowhere.
Plans MakePlans(const PlanRequest& request);

}  // namespace thermocline
