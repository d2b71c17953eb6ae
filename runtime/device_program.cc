#include "runtime/device_program.h"

#include <algorithm>

#include "models/check.h"

namespace thermocline {
namespace {

class Lowering {
 public:
  Lowering(const Model& half, const KvLayout& layout, const DeviceMap& map, std::span<const HostRows> channels,
           std::span<const StreamedPiece> pieces, const StreamedMap& stream)
      : half_(half),
        config_(half.config),
        layout_(layout),
        map_(map),
        channels_(channels),
        pieces_(pieces),
        stream_(stream) {}

  std::vector<DeviceOp> Run() {
    for (const Op* op : DistinctRopes(half_.program)) {
      const DeviceMap::Rope& rope = RopeOf(*op);
      DeviceOp& table = Emit(DeviceOpKind::kRopeTable, *rope.op);
      table.out = rope.table;
      table.vector = rope.frequencies;
    }
    for (const Op& op : half_.program.ops) Lower(op);
    return std::move(ops_);
  }

 private:
  DeviceOp& Emit(DeviceOpKind kind, const Op& op) {
    DeviceOp& out = ops_.emplace_back();
    out.kind = kind;
    out.layer = op.layer;
    out.wanted_rows = op.wanted_rows;
    out.accumulate = op.accumulate;
    return out;
  }
  DeviceRows Rows(Slot slot) const { return map_.slots[static_cast<size_t>(slot)]; }
  DeviceRows Columns(Slot slot, int64_t first, int64_t width) const {
    const DeviceRows rows = Rows(slot);
    return {rows.data + first * sizeof(float), rows.stride, static_cast<int>(width)};
  }
  DeviceAddress Vector(WeightId id, int64_t first = 0) const {
    return id >= 0 ? map_.vectors[id] + first * sizeof(float) : 0;
  }
  const DeviceMap::Rope& RopeOf(const Op& op) const {
    return *std::ranges::find_if(map_.ropes, [&](const auto& rope) { return SameFrequencies(*rope.op, op); });
  }

  void Lower(const Op& op) {
    switch (op.kind) {
      case OpKind::kEmbed:
      case OpKind::kSendPanels: CHECK(!"an op of the CPU's"); break;
      case OpKind::kNorm: {
        DeviceOp& norm = Emit(DeviceOpKind::kNorm, op);
        norm.in = Rows(op.in);
        norm.out = Rows(op.out);
        norm.vector = Vector(op.weight);
        norm.bias = Vector(op.bias);
        norm.eps = config_.norm_eps;
        break;
      }
      case OpKind::kLinear: Linear(op); break;
      case OpKind::kHeadNorm: {
        DeviceOp& norm = Emit(DeviceOpKind::kHeadNorm, op);
        norm.out = Rows(op.out);
        norm.vector = Vector(op.weight);
        norm.eps = config_.norm_eps;
        norm.head_dim = config_.head_dim;
        break;
      }
      case OpKind::kRope: {
        DeviceOp& rope = Emit(DeviceOpKind::kRope, op);
        rope.out = Rows(op.out);
        rope.rope = op.rope;
        rope.head_dim = config_.head_dim;
        rope.in = RopeOf(op).table;
        break;
      }
      case OpKind::kAttention:
      case OpKind::kAttentionState: Attention(op); break;
      case OpKind::kAttentionMerge: {
        DeviceOp& merge = Emit(DeviceOpKind::kAttentionMerge, op);
        merge.in = Rows(op.in);
        merge.in2 = Rows(Slot::kOtherState);
        merge.out = Rows(op.out);
        merge.n_head = config_.n_head;
        merge.head_dim = config_.head_dim;
        break;
      }
      case OpKind::kGatedAct: CountFirings(op); [[fallthrough]];
      case OpKind::kAct: {
        DeviceOp& act = Emit(op.kind == OpKind::kAct ? DeviceOpKind::kAct : DeviceOpKind::kGatedAct, op);
        act.in = Columns(op.in, op.begin, op.end - op.begin);
        act.out = Columns(op.out, op.begin, op.end - op.begin);
        if (op.kind == OpKind::kGatedAct) act.in2 = Columns(Slot::kUp, op.begin, op.end - op.begin);
        act.activation = op.activation;
        break;
      }
      case OpKind::kAdd: {
        DeviceOp& add = Emit(DeviceOpKind::kAdd, op);
        add.in = Rows(op.in);
        add.out = Rows(op.out);
        break;
      }
      case OpKind::kReceive: {
        DeviceOp& receive = Emit(DeviceOpKind::kReceive, op);
        receive.out = Rows(op.out);
        receive.flag = op.channel;
        receive.host = channels_[op.channel];
        break;
      }
      case OpKind::kSend: {
        // Logits go to the host as they are made.
        DeviceOp& send = op.in == Slot::kLogits ? ops_.back() : Emit(DeviceOpKind::kSend, op);
        if (op.in == Slot::kLogits)
          CHECK(send.kind == DeviceOpKind::kLogits);
        else
          send.in = Rows(op.in);
        send.flag = op.channel;
        send.host = channels_[op.channel];
        break;
      }
    }
  }

  // Not in a streamed program, whose rows are all of prompts.
  void CountFirings(const Op& op) {
    const DeviceMap::Counter counter = map_.counters.empty() ? DeviceMap::Counter{} : map_.counters[op.layer];
    if (counter.n == 0 || !pieces_.empty()) return;
    DeviceOp& count = Emit(DeviceOpKind::kCountFirings, op);
    count.in = Columns(op.in, op.begin, op.end - op.begin);
    count.activation = op.activation;
    count.vector = counter.level;
    count.counts = counter.counts;
  }

  // By the weights that the device holds, then by what is streamed.
  void Linear(const Op& op) {
    const size_t i = &op - half_.program.ops.data();
    const bool streams = n_pieces_ < pieces_.size() && pieces_[n_pieces_].op == static_cast<int>(i);
    const bool down = op.in == Slot::kGate;
    const bool resident = half_.weights[op.projections[0].weight].n > 0;
    if (resident) {
      DeviceOp& linear =
          Emit(op.projections[0].out == Slot::kLogits ? DeviceOpKind::kLogits : DeviceOpKind::kLinear, op);
      const StreamedPiece* rest = streams ? &pieces_[n_pieces_] : nullptr;
      linear.in = down ? Columns(op.in, 0, rest ? rest->first_k + rest->lead : op.end) : Rows(op.in);
      linear.large_group = op.large_group;
      linear.n_projections = op.n_projections;
      for (int p = 0; p < op.n_projections; ++p) {
        const Projection& from = op.projections[p];
        const Weight& weight = half_.weights[from.weight];
        linear.projections[p] = {map_.matrices[from.weight], Vector(from.bias), {}};
        if (from.out != Slot::kLogits) linear.projections[p].out = Columns(from.out, weight.first_row, weight.n);
      }
    }
    for (; n_pieces_ < pieces_.size() && pieces_[n_pieces_].op == static_cast<int>(i); ++n_pieces_)
      Piece(op, pieces_[n_pieces_], down && resident);
  }

  // added: to what the device's own neurons gave.
  void Piece(const Op& op, const StreamedPiece& piece, bool added) {
    const size_t place = n_pieces_ % kPiecesAtOnce;
    const Projection& from = op.projections[piece.projection];
    DeviceMatrix w = piece.w;
    w.data = stream_.buffers[place];
    DeviceOp& receive = Emit(DeviceOpKind::kReceivePanels, op);
    receive.n_projections = 1;
    receive.projections[0].w = w;
    receive.panels = stream_.staging[place];
    receive.flag = stream_.first_flag + 2 * static_cast<int>(n_pieces_);
    receive.taken = receive.flag + 1;
    DeviceOp& linear = Emit(DeviceOpKind::kLinear, op);
    linear.accumulate |= added;
    linear.large_group = op.large_group;
    linear.in = op.in == Slot::kGate ? Columns(op.in, piece.first_k, op.end - piece.first_k) : Rows(op.in);
    linear.lead = piece.lead;
    linear.n_projections = 1;
    linear.projections[0] = {w, added ? 0 : Vector(from.bias, piece.first_row),
                             Columns(from.out, piece.first_row, w.n)};
  }

  void Attention(const Op& op) {
    const auto emit = [&](DeviceOpKind kind) -> DeviceOp& {
      DeviceOp& out = Emit(kind, op);
      out.head_dim = config_.head_dim;
      out.n_head = config_.n_head;
      out.n_head_kv = config_.n_head_kv;
      out.window = op.window;
      out.scale = op.scale;
      out.kv_types = layout_.types;
      out.kv_kind = layout_.layers[op.layer].kind;
      out.kv_offset_bytes = layout_.layers[op.layer].offset_bytes;
      out.first_token = op.first_token;
      out.end_token = op.end_token;
      return out;
    };
    DeviceOp& store = emit(DeviceOpKind::kStoreKv);
    store.in = Rows(Slot::kKey);
    store.in2 = Rows(Slot::kValue);
    DeviceOp& attention =
        emit(op.kind == OpKind::kAttention ? DeviceOpKind::kAttention : DeviceOpKind::kAttentionState);
    attention.in = Rows(op.in);
    attention.out = Rows(op.out);
  }

  const Model& half_;
  const ModelConfig& config_;
  const KvLayout& layout_;
  const DeviceMap& map_;
  const std::span<const HostRows> channels_;
  const std::span<const StreamedPiece> pieces_;
  const StreamedMap& stream_;
  size_t n_pieces_ = 0;  // lowered
  std::vector<DeviceOp> ops_;
};

}  // namespace

std::vector<const Op*> DistinctRopes(const Program& program) {
  std::vector<const Op*> ropes;
  for (const Op& op : program.ops) {
    if (op.kind != OpKind::kRope) continue;
    if (std::none_of(ropes.begin(), ropes.end(), [&](const Op* known) { return SameFrequencies(*known, op); }))
      ropes.push_back(&op);
  }
  return ropes;
}

std::vector<DeviceOp> MakeDeviceProgram(const Model& half, const KvLayout& layout, const DeviceMap& map,
                                        std::span<const HostRows> channels, std::span<const StreamedPiece> pieces,
                                        const StreamedMap& stream) {
  return Lowering(half, layout, map, channels, pieces, stream).Run();
}

}  // namespace thermocline
