// Panels of a weight copied to other memory, from wherever they stand: what the other side of a split program is sent.
#pragma once

#include <cstdint>

#include "cpu/weights.h"

namespace thermocline {

// Panels of which a kSendPanels takes a multiple, but for the last ones of a weight: bundles of down hold so many
// outputs together.
inline constexpr int64_t kPanelsTogether = kDownOutputs / kPanelRows;

// What a kSendPanels sends, in units that several members may copy at the same time.
class PanelCopy {
 public:
  PanelCopy(const Weights& weights, const Op& op);

  int64_t n_units() const;
  // Unit `unit` of the panels, which stand one behind the other from `out` on; of a float type rows, PackedStride
  // apart. 64-byte aligned.
  void Copy(int64_t unit, uint8_t* out) const;

 private:
  void CopyPanels(int64_t unit, uint8_t* out) const;
  void MakeUp(int64_t unit, uint8_t* out) const;
  void MakeDown(int64_t unit, uint8_t* out) const;
  int64_t PanelsPerUnit() const;

  const PackedMatrix& matrix_;
  const Bundles& bundles_;  // where the matrix is empty
  const bool is_down_;
  const int64_t begin_, end_;  // panels
};

}  // namespace thermocline
