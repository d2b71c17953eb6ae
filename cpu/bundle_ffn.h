// Gated FFNs over bundles: which ones a model has, and what a generated row does with the neurons that fire.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/bundle_kernel.h"
#include "models/model.h"

namespace thermocline {

// How the up and down weights of FFNs stand in memory, and what generated rows read of them.
enum class FfnMode : uint8_t {
  kDense,        // panels, all read
  kExact,        // bundles, of the neurons that ReLU does not silence
  kThreshold,    // bundles, of the neurons with |act(gate)| above a level
  kPredicted,    // the same among the neurons that a predictor names; the gates of the others are not read either
  kBundleDense,  // bundles, all read: what the two above must equal bit for bit
};

struct GatedFfn {
  int layer;
  WeightId gate, up, down;
};
// The FFNs that can stand in bundles: gated, up without a bias, widths that bundles hold; for kExact, gated by ReLU;
// for kPredicted, the gate without a bias.
std::vector<GatedFfn> FindSparseFfns(const Model& model, FfnMode mode);

// A row that was generated.
struct BundleRow {
  const float* activation;  // (n_ff) act(gate)
  const uint8_t* x;         // SpreadBytes(n_embd)
  float* partial;           // (n_slices, n_outputs), 64-byte aligned: out
};

// Which neurons a row adds: those with |activation| above the level, or NaN; below 0, all of them.
struct Firing {
  float level = 0;
  bool skip = true;  // the others are not read, to the same bits
};

// What was read: of `rows` x neurons those that were active, and neurons that any of the rows read.
struct NeuronCount {
  int64_t neurons = 0, active = 0;    // summed over rows
  int64_t predicted = 0;              // of them, those whose gate was read because of a predictor
  int64_t stored = 0, read = 0;       // once for all rows
  int64_t bytes = 0, bytes_read = 0;  // of bundles and down scales, once for all rows; with a predictor, of gates too
  int64_t predictor_bytes = 0;        // read besides
  void Add(const NeuronCount& other);
};

// partial[slice] = sum over the slice's neurons that fire, in order, of activation * up(x) * down. fired: (n_ff), one
// more for each row in which the neuron fires, or null.
void RunSlice(const BundleKernel& kernel, const Bundles& bundles, int64_t slice, std::span<const BundleRow> rows,
              const Firing& firing, NeuronCount& count, uint32_t* fired = nullptr);

// y[e] = (y[e] or 0) + partial[0][e] + partial[1][e] + ... for e in [begin, end).
void MergeSlices(const BundleShape& shape, const float* partial, bool accumulate, int64_t begin, int64_t end, float* y);

}  // namespace thermocline
