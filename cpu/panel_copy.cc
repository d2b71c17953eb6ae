#include "cpu/panel_copy.h"

#include <algorithm>
#include <cstring>

namespace thermocline {
namespace {

constexpr int64_t kUnitBytes = int64_t{128} << 10;  // of panels that are copied
constexpr int64_t kUpGroups = 4;                    // of 32 neurons
// Of 32 neurons, even. Whole bundles' down codes are read one behind the other, and panels written a few lines each.
constexpr int64_t kDownGroups = 8;
constexpr int64_t kGroupPanels = kBundleNeurons / kPanelRows;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
// From one panel to the next, of a float type from one 16 rows to the next.
int64_t PanelBytes(const PackedMatrix& matrix) {
  return matrix.format() ? matrix.panel_bytes() : kPanelRows * matrix.stride_bytes();
}

// Where the rows of a matrix that is empty stand.
const Bundles& BundlesOf(const Weights& weights, const Op& op) {
  for (const GatedFfn& ffn : weights.bundled())
    if (ffn.gate == op.weight) return weights.gate_rows(op.layer);
  return weights.bundles(op.layer);
}

}  // namespace

PanelCopy::PanelCopy(const Weights& weights, const Op& op)
    : matrix_(weights.matrix(op.weight)),
      bundles_(BundlesOf(weights, op)),
      is_down_(op.in == Slot::kGate),
      begin_(op.begin),
      end_(op.end) {}

int64_t PanelCopy::PanelsPerUnit() const {
  return matrix_.bytes() > 0 ? std::max<int64_t>(1, kUnitBytes / PanelBytes(matrix_)) : kUpGroups * kGroupPanels;
}

int64_t PanelCopy::n_units() const {
  if (matrix_.bytes() == 0 && is_down_) return CeilDiv(bundles_.shape().n_groups(), kDownGroups);
  return CeilDiv(end_ - begin_, PanelsPerUnit());
}

void PanelCopy::Copy(int64_t unit, uint8_t* out) const {
  if (matrix_.bytes() > 0) return CopyPanels(unit, out);
  return is_down_ ? MakeDown(unit, out) : MakeUp(unit, out);
}

void PanelCopy::CopyPanels(int64_t unit, uint8_t* out) const {
  const int64_t bytes = PanelBytes(matrix_), first = begin_ + unit * PanelsPerUnit();
  const int64_t last = std::min(first + PanelsPerUnit(), end_);
  const uint8_t* from = matrix_.format() ? matrix_.panel(first) : matrix_.row(first * kPanelRows);
  std::memcpy(out + (first - begin_) * bytes, from, std::min(last * bytes, matrix_.bytes()) - first * bytes);
}

void PanelCopy::MakeUp(int64_t unit, uint8_t* out) const {
  const BundleShape& shape = bundles_.shape();
  const int64_t stride = PackedBytes(shape.up, kPanelRows, shape.n_embd);
  const int64_t first = begin_ / kGroupPanels + unit * kUpGroups;
  for (int64_t group = first; group < std::min(first + kUpGroups, end_ / kGroupPanels); ++group) {
    uint8_t* to = out + (group * kGroupPanels - begin_) * stride;
    for (int64_t block = 0; block < shape.up_blocks(); ++block) {
      bundles_.UpPanels(group, block, stride, to);
      to += bundles_.UpPanelBytes(block);
    }
  }
}

void PanelCopy::MakeDown(int64_t unit, uint8_t* out) const {
  constexpr int64_t kTogether = 2;  // groups of a packed block
  const BundleShape& shape = bundles_.shape();
  const int64_t stride = PackedBytes(shape.down, kPanelRows, shape.n_ff);
  const int64_t first_block = begin_ / kPanelsTogether, end_block = CeilDiv(end_, kPanelsTogether);
  const int64_t end_group = std::min((unit + 1) * kDownGroups, shape.n_groups());
  for (int64_t group = unit * kDownGroups; group < end_group; group += kTogether) {
    uint8_t* to = out + group / kTogether * shape.down_format().block_bytes();
    for (int64_t block = first_block; block < end_block; ++block, to += kPanelsTogether * stride)
      bundles_.DownPanels(block, group, std::min(kTogether, end_group - group), stride, to);
  }
}

}  // namespace thermocline
