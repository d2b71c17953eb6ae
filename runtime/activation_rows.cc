#include "runtime/activation_rows.h"

#include "cpu/isa.h"
#include "cpu/vector_ops.h"
#include "models/check.h"

namespace thermocline {

ActivationRows::ActivationRows(Engine& engine, const Model& model, int max_rows)
    : engine_(engine),
      n_ff_(model.config.n_ff),
      rows_(static_cast<size_t>(model.config.n_layer), std::vector<float>(static_cast<size_t>(max_rows * n_ff_))) {
  int n_activations = 0;
  for (const Op& op : model.program.ops)
    n_activations += (op.kind == OpKind::kGatedAct || op.kind == OpKind::kAct) && op.layer >= 0;
  CHECK(n_activations == n_layer());
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  engine_.SetInputTap([this, &ops](const Op& op, int64_t row, std::span<const float> x) {
    if (op.kind != OpKind::kGatedAct && op.kind != OpKind::kAct) return;
    ops.act(x.data(), static_cast<int>(n_ff_), op.activation, rows_[op.layer].data() + row * n_ff_);
  });
}

ActivationRows::~ActivationRows() { engine_.SetInputTap({}); }

}  // namespace thermocline
