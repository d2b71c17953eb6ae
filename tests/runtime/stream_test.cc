#include "runtime/stream.h"

#include <doctest/doctest.h>

#include <climits>
#include <map>
#include <set>

#include "gpu/emulated_device.h"
#include "runtime/device_plan.h"
#include "runtime/emulated_ops.h"
#include "runtime/stream_rows.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline {
namespace {

constexpr int64_t kPieceBytes = 1 << 14;

// Runs both lists of ops, each in order, as far as what passes between them allows; the panels of a piece wait for
// those kPiecesAtOnce before them to be taken. Whether both come to their ends.
bool BothEnd(const StreamedModel& streamed) {
  const std::vector<Op>&cpu = streamed.split.cpu.program.ops, &device = streamed.split.device.program.ops;
  std::set<int> sent, pieces;  // channels, pieces in staging or further
  size_t i = 0, j = 0, taken = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (; i < cpu.size(); ++i, moved = true) {
      const Op& op = cpu[i];
      if (op.kind == OpKind::kReceive && !sent.contains(op.channel)) break;
      if (op.kind == OpKind::kSendPanels) {
        if (op.channel >= static_cast<int>(taken) + kPiecesAtOnce) break;
        pieces.insert(op.channel);
      }
      if (op.kind == OpKind::kSend) sent.insert(op.channel);
    }
    for (; j < device.size(); moved = true) {
      const Op& op = device[j];
      if (op.kind == OpKind::kReceive && !sent.contains(op.channel)) break;
      if (taken < streamed.pieces.size() && streamed.pieces[taken].op == static_cast<int>(j)) {
        if (!pieces.contains(static_cast<int>(taken))) break;
        ++taken;
        continue;
      }
      if (op.kind == OpKind::kSend) sent.insert(op.channel);
      ++j;
    }
  }
  return i == cpu.size() && j == device.size() && taken == streamed.pieces.size();
}

}  // namespace

TEST_CASE("stream: pieces are what the CPU holds of products, each once, and no side waits for ever") {
  const EmulatedDevice device({.budget_bytes = 1 << 20}, MakeEmulatedOps());
  std::mt19937 random(3);
  const TinyOptions models[] = {
      {.type = DType::kQ4_0, .n_layer = 4, .n_ff = 512},
      {.type = DType::kQ4_K, .n_embd = 256, .n_ff = 768},
      {.arch = "gemma3", .type = DType::kQ4_1, .n_layer = 7, .n_ff = 512},
      {.arch = "opt", .type = DType::kQ5_1, .n_ff = 576, .n_head_kv = 4, .biases = true, .tied = false},
      {.type = DType::kQ5_0, .n_ff = 608, .activation = "relu"},
  };
  for (const TinyOptions& options : models) {
    const GgufWriter writer = TinyModel(options);
    const GgufFile file = writer.Open();
    const Model model = Model::FromGguf(file);
    const FfnMode ffn = options.activation == "relu" ? FfnMode::kExact : FfnMode::kDense;
    for (int i = 0; i < 30; ++i) {
      CAPTURE(options.arch);
      CAPTURE(i);
      const Placement placement = RandomPlacement(model.config, random);
      const SplitModel split = Split(model, placement);
      const auto streamed = Stream(device, model, placement, split, {}, ffn, kPieceBytes);
      std::map<WeightId, int64_t> expected, panels;
      for (const Op& op : split.cpu.program.ops)
        for (int p = 0; op.kind == OpKind::kLinear && op.layer >= 0 && p < op.n_projections; ++p)
          expected[op.projections[p].weight] =
              (split.cpu.weights[op.projections[p].weight].n + kPanelRows - 1) / kPanelRows;
      REQUIRE(streamed.has_value() == !expected.empty());
      if (!streamed) continue;
      for (const StreamedPiece& piece : streamed->pieces) {
        CHECK(piece.first_panel == panels[piece.weight]);
        CHECK(piece.first_row == split.cpu.weights[piece.weight].first_row + piece.first_panel * kPanelRows);
        panels[piece.weight] = piece.end_panel;
      }
      CHECK(panels == expected);
      CHECK(BothEnd(*streamed));
    }
  }
}

TEST_CASE("stream: from how many rows on") {
  CHECK(RowsToStream(32, 0.1, 0.1, 0.1) == 32);    // 3.1 ms a row, or 100 ms for any number
  CHECK(RowsToStream(32, 0.1, 0.09, 0.09) == 32);  // even at 28.8
  CHECK(RowsToStream(32, 0.1, 0.2, 0.2) == 64);
  CHECK(RowsToStream(32, 0.1, 0.2, 0.21) == 128);  // even at 67.6
  CHECK(RowsToStream(32, 0.1, 0.01, 0.01) == 16);
  CHECK(RowsToStream(32, 0.1, 0.01, 0.005) == 16);
  CHECK(RowsToStream(32, 0.1, 0.2, 0.4) == INT_MAX);  // the device is the slower one
  CHECK(RowsToStream(32, 0.1, 0.2, 0.3) == INT_MAX);
}

}  // namespace thermocline
