// Steps of many prompt rows in a split model. The device computes all products in them, and the weights that stand with
// the CPU are streamed to it while it computes, piece by piece:
//
//   CPU      panels of piece p to staging p % 2, flag
//   device                                            staging to buffer p % 2, flag: it may change   product by piece p
//
// A piece is a run of panels of one weight. Keys and values stay where they are, with attention over them, and so does
// what the device cannot multiply by.
#pragma once

#include <optional>
#include <vector>

#include "cpu/bundle_ffn.h"
#include "gpu/device.h"
#include "runtime/split.h"

namespace thermocline {

// Pieces that stand in page-locked memory, and as many in the device's.
inline constexpr int kPiecesAtOnce = 2;

struct StreamedPiece {
  DeviceMatrix w;      // rows of what the CPU has of a weight, in the type in which it has them; without an address
  int op, projection;  // the product, in the device's list of ops
  WeightId weight;
  int64_t first_panel, end_panel;  // of what the CPU has
  int64_t first_row, first_k;      // of the whole weight
  int lead;                        // columns in front whose neurons are the device's, and not meant here
};

struct StreamedModel {
  // The device's weights are those that it holds all the time: matrices as in the plain split, vectors whole. The CPU's
  // list of ops sends the pieces, each as soon as the one that stood in its place may have been taken.
  SplitModel split;
  std::vector<StreamedPiece> pieces;  // in the order in which they are needed
};

// `split` is that of the model by the placement; ffn: how the CPU holds its part of FFNs. Nothing where it has no
// weight that the device could multiply by.
std::optional<StreamedModel> Stream(const Device& device, const Model& model, const Placement& placement,
                                    const SplitModel& split, KvTypes kv_types, FfnMode ffn, int64_t piece_bytes);

}  // namespace thermocline
