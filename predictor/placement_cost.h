// From a model and what its machine can do to the problem that a placement solves.
#pragma once

#include <array>
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

// What up and down of a layer take in bundles, in seconds, by the share of its neurons that fire (or its gates in rows,
// by the share that is named): measured at a few, and on lines between them. Never falls, and never rises faster than
// before: what neurons share is read for fewer of them, so whoever parts hot from cold can only gain. A measurement
// below that was disturbed, and is raised.
class NeuronSeconds {
 public:
  // Most neurons of a model with 90 % silent are far colder than its mean; the scales that they share are then read for
  // few of them.
  static constexpr std::array<double, 3> kShares = {0.02, 0.1, 0.6};

  NeuronSeconds() = default;  // 0
  explicit NeuronSeconds(const std::array<double, 3>& measured);
  double At(double share) const;

 private:
  std::array<double, 3> seconds_{};
};

// Of one generated row on the CPU, in seconds, by layer.
struct CpuLayerSeconds {
  double attention;       // from the layer's first op to the product behind attention, without attention itself
  double kv;              // attention
  double ffn;             // what an FFN takes besides its products
  double gate, up_down;   // kDense: all three products are in `gate`
  NeuronSeconds neurons;  // of which up_down is what the layer's mean takes
  // kPredicted: gates and predictor by the share of neurons that is named, of which `gate` is what the mean takes; and
  // that share over the share that fires.
  NeuronSeconds gates;
  double named_per_firing = 0;
};
struct CpuSeconds {
  std::vector<CpuLayerSeconds> layers;
  double head = 0;
  double sum() const;
};

// Which neurons are read, by layer.
struct NeuronShares {
  std::vector<double> active;    // the share whose up and down are read
  std::vector<double> named{};   // kPredicted: the share whose gates are read
  std::vector<int64_t> ranks{};  // kPredicted: of predictors
};

// Measures with a team of n_threads; n_tokens are kept.
CpuSeconds MeasureCpu(const Model& model, FfnMode mode, const NeuronShares& shares, KvTypes kv_types, int n_threads,
                      int n_tokens);

// `heat`, by layer and block of kHotBlock: the share of tokens for which its neurons fire, never rising (BlockHeat of
// predictor/heat_order.h); empty: all neurons of a layer count as equally hot.
PlacementProblem MakeProblem(const Model& model, const CpuSeconds& cpu, const DeviceRates& device, KvTypes kv_types,
                             int n_tokens, const std::vector<std::vector<double>>& heat = {});

}  // namespace thermocline
