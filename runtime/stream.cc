#include "runtime/stream.h"

#include <algorithm>

#include "cpu/panel_copy.h"
#include "models/check.h"

namespace thermocline {
namespace {

bool IsFfnProduct(const Op& op) {
  const Slot out = op.projections[0].out;
  return op.in == Slot::kGate || out == Slot::kGate || out == Slot::kUp;
}
bool Passes(const Op& op) { return op.kind == OpKind::kSend || op.kind == OpKind::kReceive; }

class Streamer {
 public:
  Streamer(const Model& model, const Placement& placement, const SplitModel& plain, FfnMode ffn, int64_t piece_bytes)
      : model_(model), placement_(placement), plain_(plain), piece_bytes_(piece_bytes), bundled_(model.weights.size()) {
    if (ffn == FfnMode::kDense) return;
    for (const GatedFfn& each : FindSparseFfns(plain.cpu, ffn)) {
      bundled_[each.up] = bundled_[each.down] = true;
      bundled_[each.gate] = ffn == FfnMode::kPredicted;
    }
  }

  StreamedModel Run(SplitModel split) {
    streamed_.split = std::move(split);
    const std::vector<Op>& ops = streamed_.split.device.program.ops;
    int n_passed = 0;
    for (size_t i = 0; i < ops.size(); ++i) {
      n_passed += Passes(ops[i]);
      if (ops[i].kind != OpKind::kLinear || !IsCpus(ops[i])) continue;
      for (int p = 0; p < ops[i].n_projections; ++p) Cut(ops[i], static_cast<int>(i), p);
      passed_.resize(streamed_.pieces.size(), n_passed);
    }
    SendPieces();
    TakeResident();
    return std::move(streamed_);
  }

 private:
  const LayerPlacement& Layer(const Op& op) const { return placement_.layers[op.layer]; }
  bool IsCpus(const Op& op) const {
    if (op.layer < 0) return false;
    return IsFfnProduct(op) ? Layer(op).n_hot < model_.config.n_ff : Layer(op).attention == Memory::kCpu;
  }

  void Cut(const Op& op, int i, int p) {
    const WeightId id = op.projections[p].weight;
    const Weight& part = plain_.cpu.weights[id];
    const bool down = op.in == Slot::kGate;
    DType type = part.type();
    int64_t k = part.k, first_k = part.first_k;
    if (bundled_[id]) type = down ? BundleShape::DownType(type) : BundleShape::UpType(type);
    if (bundled_[id] && down) {  // which holds the CPU's neurons alone, whatever the file's blocks are
      first_k = Layer(op).n_hot;
      k = model_.config.n_ff - first_k;
    }
    const int64_t n_panels = (part.n + kPanelRows - 1) / kPanelRows;
    const int64_t bytes = PackedBytes(type, kPanelRows, k) * kPanelsTogether;
    const int64_t together = std::max<int64_t>(1, piece_bytes_ / bytes) * kPanelsTogether;
    for (int64_t first = 0; first < n_panels; first += together) {
      const int64_t end = std::min(first + together, n_panels), row = first * kPanelRows;
      streamed_.pieces.push_back({.w = {type, std::min(end * kPanelRows, part.n) - row, k, 0},
                                  .op = i,
                                  .projection = p,
                                  .weight = id,
                                  .first_panel = first,
                                  .end_panel = end,
                                  .first_row = part.first_row + row,
                                  .first_k = first_k,
                                  .lead = down ? static_cast<int>(Layer(op).n_hot - first_k) : 0});
    }
  }

  // Where a piece is sent, nothing that the device needs for the products by those kPiecesAtOnce before it, which free
  // its place, may still be to come from the CPU.
  void SendPieces() {
    const std::vector<StreamedPiece>& pieces = streamed_.pieces;
    std::vector<Op> ops;
    size_t next = 0;
    int n_passed = 0;
    const auto send = [&] {
      for (; next < pieces.size() && (next < kPiecesAtOnce || passed_[next + 1 - kPiecesAtOnce] <= n_passed); ++next) {
        const Op& product = streamed_.split.device.program.ops[pieces[next].op];
        ops.push_back({.kind = OpKind::kSendPanels,
                       .layer = product.layer,
                       .in = product.in,
                       .weight = pieces[next].weight,
                       .begin = static_cast<int>(pieces[next].first_panel),
                       .end = static_cast<int>(pieces[next].end_panel),
                       .channel = static_cast<int16_t>(next)});
      }
    };
    send();
    for (const Op& op : streamed_.split.cpu.program.ops) {
      ops.push_back(op);
      if (!Passes(op)) continue;
      ++n_passed;
      send();
    }
    CHECK(next == pieces.size());
    streamed_.split.cpu.program.ops = std::move(ops);
  }

  void TakeResident() {
    std::vector<Weight>& weights = streamed_.split.device.weights;
    for (size_t id = 0; id < weights.size(); ++id)
      if (weights[id].matrix || weights[id].n == 0) weights[id] = plain_.device.weights[id];
  }

  const Model& model_;
  const Placement& placement_;
  const SplitModel& plain_;
  const int64_t piece_bytes_;
  std::vector<bool> bundled_;  // by WeightId
  std::vector<int> passed_;    // by piece: channels that the device passes in front of its product
  StreamedModel streamed_;
};

}  // namespace

std::optional<StreamedModel> Stream(const Device& device, const Model& model, const Placement& placement,
                                    const SplitModel& split, KvTypes kv_types, FfnMode ffn, int64_t piece_bytes) {
  Placement products = placement;
  for (LayerPlacement& layer : products.layers) {
    layer.n_hot = model.config.n_ff;
    layer.attention = Memory::kDevice;
  }
  products = Restrict(device, model, kv_types, std::move(products));
  StreamedModel streamed = Streamer(model, placement, split, ffn, piece_bytes).Run(Split(model, products));
  const auto fits = [&](const StreamedPiece& piece) { return device.Supports(piece.w.type); };
  if (streamed.pieces.empty() || streamed.pieces.size() > INT16_MAX || !std::ranges::all_of(streamed.pieces, fits))
    return std::nullopt;
  return streamed;
}

}  // namespace thermocline
