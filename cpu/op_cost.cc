#include "cpu/op_cost.h"

#include <algorithm>

#include "cpu/packed.h"

namespace thermocline {

OpCost::OpCost(const Model& model, const Op& op, KvTypes kv_types) {
  if (op.kind == OpKind::kAttention) {
    const ModelConfig& config = model.config;
    bytes_per_token_ = config.n_head_kv * KvHeadBytes(kv_types, config.head_dim) / kPageTokens;
    ops_per_pair_ = int64_t{4} * config.n_head * config.head_dim;
    window_ = op.window;
  } else if (op.kind == OpKind::kLinear) {
    for (int i = 0; i < op.n_projections; ++i) {
      const Weight& weight = model.weights[op.projections[i].weight];
      weight_bytes_ += PackedMatrix::BytesFor(weight.type(), weight.n, weight.k);
      ops_per_row_ += 2 * weight.n * weight.k;
    }
  }
}

void OpCost::AddRows(int64_t n_rows, Work& work) const {
  if (n_rows > 0) work.bytes += weight_bytes_;
  work.ops += n_rows * ops_per_row_;
}

void OpCost::AddSpan(int64_t first_position, int64_t n_rows, Work& work) const {
  const int64_t first_seen = window_ ? std::max<int64_t>(0, first_position - window_ + 1) : 0;
  work.bytes += (first_position + n_rows - first_seen) * bytes_per_token_;
  int64_t pairs = 0;  // row r sees first_position + r + 1 tokens, or the window
  const int64_t growing = window_ ? std::clamp<int64_t>(window_ - first_position, 0, n_rows) : n_rows;
  pairs += growing * (2 * first_position + growing + 1) / 2 + (n_rows - growing) * window_;
  work.ops += pairs * ops_per_pair_;
}

Work CountStep(const Model& model, KvTypes kv_types, int64_t first_position, int64_t n_rows, int64_t n_wanted,
               int64_t n_sequences) {
  Work work;
  for (const Op& op : model.program.ops) {
    const OpCost cost(model, op, kv_types);
    if (op.kind == OpKind::kLinear) cost.AddRows(n_sequences * (op.wanted_rows ? n_wanted : n_rows), work);
    if (op.kind == OpKind::kAttention)
      for (int64_t i = 0; i < n_sequences; ++i) cost.AddSpan(first_position, n_rows, work);
  }
  return work;
}

}  // namespace thermocline
