// What the ops of one generated row take on this machine: the kernels themselves, timed with the whole team over memory
// as large as the model's, so that caches hold of it what they will hold of the model. No weight is needed for that.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/bundle_ffn.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/team.h"
#include "cpu/vector_ops.h"
#include "models/model.h"

namespace thermocline {

class DecodeMeter {
 public:
  // `model` and `team` must outlive it. Takes as much memory as the weights, up to 1 GiB or
  // twice its largest product.
  DecodeMeter(const Model& model, Team& team, Isa isa);

  // Seconds, medians of several runs. Of a kLinear's projections [begin, end), shared out as the executor does it.
  double Product(const Op& op, int begin, int end);
  // Of what happens row by row, on one member: a norm, heads' norms, rope, storing keys and values, an activation; of
  // a kLinear, what its input needs.
  double Row(const Op& op);
  // Of an FFN's up and down in bundles of which a share is active, and of their sums.
  double Neurons(const BundleShape& shape, double active);
  // Of an FFN's gates in rows, where a predictor of that rank names a share of the neurons; and of the predictor.
  double PredictedGates(const BundleShape& gates, int64_t rank, double named);
  // Of what a row's input needs for that.
  double Spread(const BundleShape& shape);
  // Of attention in all layers over n_tokens, for each layer of its kind of window the same.
  std::vector<double> Attention(KvTypes types, int n_tokens);

 private:
  template <typename Run>
  double Time(int64_t bytes, const Run& run);
  template <typename Run>
  double TimeRow(const Run& run);
  template <typename Then>
  void Evict(Team::Member& member, const Then& then);

  const Model& model_;
  Team& team_;
  const Isa isa_;
  const VectorOps& ops_;
  Buffer weights_;                    // what kernels read, ever further on
  int64_t at_ = 0;                    // in it
  Buffer in_, out_;                   // rows, as wide as any
  std::atomic<int64_t> evicted_ = 0;  // read by nobody, so that reading is not left out
  std::map<DType, LinearKernel> kernels_;
  std::map<std::vector<int64_t>, double> known_;  // products by their shapes
};

}  // namespace thermocline
