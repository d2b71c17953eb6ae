// The stages that a program of ops becomes.
#pragma once

#include <vector>

#include "models/model.h"

namespace thermocline {

// Work on one row at a time.
enum class RowTask : uint8_t {
  kRopeTables,  // cos and sin for the row's position, every distinct rope of the program
  kEmbed,
  kNorm,
  kHeadNorm,
  kRope,
  kStoreKv,
  kGatedAct,
  kAct,
  kQuantize,  // op.in to two-plane activations
  kBias,      // op.projections' biases
  kTap,       // op.in to whoever asked for it
  kSend,      // op.in to the peer
  kReceive,   // op.out from the peer
  kAdd,
  kMergeStates,
};

struct Stage {
  enum class Kind : uint8_t { kRows, kLinear, kAttention, kSendPanels } kind;
  const Op* op = nullptr;    // but for kRows
  bool wanted_rows = false;  // over the rows whose logits are wanted, which stand compactly from here on
  struct Task {
    RowTask task;
    const Op* op;
  };
  std::vector<Task> tasks;  // kRows, in order
  int raises = -1;          // the channel whose rows are all there when the stage is over
};

// `needs_quantize(op)`: whether a kLinear op has integer weights. `tapped`: somebody wants to see what
// they and activations read.
template <typename Predicate>
std::vector<Stage> MakeStages(const Program& program, const Predicate& needs_quantize, bool tapped) {
  std::vector<Stage> stages;
  const auto add_task = [&](RowTask task, const Op* op, bool wanted) {
    if (stages.empty() || stages.back().kind != Stage::Kind::kRows || stages.back().wanted_rows != wanted ||
        stages.back().raises >= 0)
      stages.push_back({Stage::Kind::kRows, nullptr, wanted, {}, -1});
    stages.back().tasks.push_back({task, op});
  };
  add_task(RowTask::kRopeTables, nullptr, false);
  for (const Op& op : program.ops) {
    switch (op.kind) {
      case OpKind::kEmbed: add_task(RowTask::kEmbed, &op, false); break;
      case OpKind::kNorm: add_task(RowTask::kNorm, &op, op.wanted_rows); break;
      case OpKind::kHeadNorm: add_task(RowTask::kHeadNorm, &op, false); break;
      case OpKind::kRope: add_task(RowTask::kRope, &op, false); break;
      case OpKind::kReceive: add_task(RowTask::kReceive, &op, op.wanted_rows); break;
      case OpKind::kAdd: add_task(RowTask::kAdd, &op, false); break;
      case OpKind::kAttentionMerge: add_task(RowTask::kMergeStates, &op, false); break;
      case OpKind::kSend:
        add_task(RowTask::kSend, &op, op.wanted_rows);
        stages.back().raises = op.channel;
        break;
      case OpKind::kSendPanels: stages.push_back({Stage::Kind::kSendPanels, &op, false, {}, -1}); break;
      case OpKind::kGatedAct:
      case OpKind::kAct:
        if (tapped) add_task(RowTask::kTap, &op, false);
        add_task(op.kind == OpKind::kAct ? RowTask::kAct : RowTask::kGatedAct, &op, false);
        break;
      case OpKind::kAttention:
      case OpKind::kAttentionState:
        add_task(RowTask::kStoreKv, &op, false);
        stages.push_back({Stage::Kind::kAttention, &op, false, {}, -1});
        break;
      case OpKind::kLinear: {
        if (tapped) add_task(RowTask::kTap, &op, op.wanted_rows);
        if (needs_quantize(op)) add_task(RowTask::kQuantize, &op, op.wanted_rows);
        stages.push_back({Stage::Kind::kLinear, &op, op.wanted_rows, {}, -1});
        bool bias = false;
        for (int i = 0; i < op.n_projections; ++i) bias |= op.projections[i].bias >= 0;
        if (bias) add_task(RowTask::kBias, &op, op.wanted_rows);
        break;
      }
    }
  }
  return stages;
}

}  // namespace thermocline
