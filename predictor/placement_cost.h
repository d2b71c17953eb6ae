// From a model and what its machine can do to the problem that a placement solves.
#pragma once

#include <vector>

#include "cpu/bundle_ffn.h"
#include "models/kv_layout.h"
#include "models/model.h"
#include "predictor/placement_solver.h"

namespace thermocline {

// A device as far as it matters here.
struct DeviceRates {
  double bytes_per_s = 0;           // of its memory, when a kernel reads weights
  double launch_s = 0;              // of an op
  double transfer_s = 0;            // one way, of few bytes
  double transfer_bytes_per_s = 0;  // beyond that
};

// Of one generated row on the CPU, in seconds, by layer.
struct CpuLayerSeconds {
  double attention;      // from the layer's first op to the product behind attention, without attention itself
  double kv;             // attention
  double ffn;            // what an FFN takes besides its products
  double gate, up_down;  // kDense: all three products are in `gate`
};
struct CpuSeconds {
  std::vector<CpuLayerSeconds> layers;
  double head = 0;
  double sum() const;
};

// `active`, by layer, is the share of neurons whose up and down are read. Measures with a team of n_threads; n_tokens
// are kept.
CpuSeconds MeasureCpu(const Model& model, FfnMode mode, const std::vector<double>& active, KvTypes kv_types,
                      int n_threads, int n_tokens);

// Neurons of a layer count as equally hot: they stand in memory as they do in the file.
PlacementProblem MakeProblem(const Model& model, const CpuSeconds& cpu, const DeviceRates& device, KvTypes kv_types,
                             int n_tokens, int64_t cpu_bytes, int64_t device_bytes);

}  // namespace thermocline
