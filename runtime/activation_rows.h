// act(gate), or act(up) where the FFN has no gate, of all neurons in the rows of a step: what is counted to know which
// of them fire.
#pragma once

#include <cstdint>
#include <vector>

#include "models/model.h"
#include "runtime/engine.h"

namespace thermocline {

class ActivationRows {
 public:
  // Watches an engine of `model` with dense FFNs until destroyed, in steps of at most max_rows rows.
  ActivationRows(Engine& engine, const Model& model, int max_rows);
  ~ActivationRows();
  ActivationRows(const ActivationRows&) = delete;

  int n_layer() const { return static_cast<int>(rows_.size()); }
  const float* row(int layer, int64_t row) const { return rows_[layer].data() + row * n_ff_; }  // (n_ff)

 private:
  Engine& engine_;
  const int64_t n_ff_;
  std::vector<std::vector<float>> rows_;  // by layer (max_rows, n_ff)
};

}  // namespace thermocline
