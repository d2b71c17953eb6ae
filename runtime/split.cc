#include "runtime/split.h"

#include <algorithm>
#include <array>
#include <optional>

#include "models/check.h"
#include "models/packed_format.h"

namespace thermocline {
namespace {

constexpr size_t kSlots = static_cast<size_t>(Slot::kCount);

// Columns of a matrix can be cut at multiples of this many: at whole blocks, packed and in the file.
int64_t CutColumns(DType type) {
  const PackedFormat* format = FindPackedFormat(type);
  return std::max(Info(type).block, format ? format->block_k() : 1);
}

bool SupportsWeightsOf(const Device& device, const Model& model, const Op& op) {
  for (int i = 0; i < op.n_projections; ++i)
    if (!device.Supports(model.weights[op.projections[i].weight].type())) return false;
  return true;
}

// A buffer is free again for whoever knows that its rows were read: for the reader, and for the writer once the reader
// has sent something since.
void ShareBuffers(SplitModel& split) {
  std::vector<size_t> last;  // channel in each buffer
  for (size_t i = 0; i < split.channels.size(); ++i) {
    Channel& channel = split.channels[i];
    const auto is_free = [&](size_t before) {
      return std::any_of(
                 split.channels.begin() + before, split.channels.begin() + i,
                 [&](const Channel& between) { return between.to_device != split.channels[before].to_device; }) ||
             channel.to_device != split.channels[before].to_device;
    };
    const auto buffer = std::find_if(last.begin(), last.end(), is_free) - last.begin();
    if (buffer == std::ssize(last)) last.push_back(i);
    last[buffer] = i;
    channel.buffer = static_cast<int>(buffer);
  }
  split.n_buffers = static_cast<int>(last.size());
}

// Walks the ops in order and keeps account of which memory holds the rows of each slot.
class Splitter {
 public:
  Splitter(const Model& model, const Placement& placement) : model_(model), placement_(placement) {
    for (Model* half : {&split_.cpu, &split_.device}) {
      half->config = model.config;
      half->program.width = model.program.width;
      half->weights = model.weights;
      for (Weight& weight : half->weights) weight.n = 0;
    }
  }

  SplitModel Run() {
    const std::vector<Op>& ops = model_.program.ops;
    for (size_t i = 0; i < ops.size(); ++i) {
      const Op& op = ops[i];
      const bool splits = IsFirstOfFfn(op) && HotNeurons(op.layer) > 0 && HotNeurons(op.layer) < model_.config.n_ff;
      if (splits) {
        SplitFfn(op, ops[i + 1], ops[i + 2]);
        i += 2;
      } else if (op.kind == OpKind::kAttention && SplitsKv(op.layer)) {
        SplitAttention(op);
      } else {
        Whole(op, Side(ops, i));
      }
    }
    Need(Memory::kCpu, Slot::kLogits, true);
    ShareBuffers(split_);
    return std::move(split_);
  }

 private:
  struct Holds {
    bool cpu = false, device = false;
    bool& on(Memory side) { return side == Memory::kCpu ? cpu : device; }
  };

  Model& Half(Memory side) { return side == Memory::kCpu ? split_.cpu : split_.device; }
  static Memory Other(Memory side) { return side == Memory::kCpu ? Memory::kDevice : Memory::kCpu; }
  int64_t HotNeurons(int layer) const { return placement_.layers[layer].n_hot; }
  static bool IsFirstOfFfn(const Op& op) {
    return op.kind == OpKind::kLinear && (op.projections[0].out == Slot::kGate || op.projections[0].out == Slot::kUp);
  }

  bool SplitsKv(int layer) const {
    return placement_.SplitsKv() && placement_.layers[layer].kv == Memory::kDevice &&
           !model_.config.IsWindowLayer(layer);
  }

  // Where an FFN's input is normed and its sum merged: where all of it is, else where the attention in front was, which
  // is where the hidden state stands.
  Memory FfnSide(int layer) const {
    if (HotNeurons(layer) == 0) return Memory::kCpu;
    return HotNeurons(layer) == model_.config.n_ff ? Memory::kDevice : placement_.layers[layer].attention;
  }

  // Where the i-th op runs that is not split.
  Memory Side(const std::vector<Op>& ops, size_t i) const {
    const Op& op = ops[i];
    if (op.kind == OpKind::kEmbed) return Memory::kCpu;
    if (op.layer < 0) return placement_.head;
    if (op.kind == OpKind::kAttention) return placement_.layers[op.layer].kv;
    // A norm goes with the product in front of which or behind which it stands.
    const Op& product = op.kind != OpKind::kNorm ? op : op.in == Slot::kHidden ? ops[i + 1] : ops[i - 1];
    const bool ffn = product.in == Slot::kGate || IsFirstOfFfn(product);
    return ffn ? FfnSide(op.layer) : placement_.layers[op.layer].attention;
  }

  // The rows of the slot stand on that side from here on.
  void Need(Memory side, Slot slot, bool wanted_rows = false) {
    Holds& holds = holds_[static_cast<size_t>(slot)];
    if (holds.on(side)) return;
    CHECK(holds.on(Other(side)));
    const auto channel = static_cast<int16_t>(split_.channels.size());
    split_.channels.push_back({slot, side == Memory::kDevice});
    Op pass{.kind = OpKind::kSend, .in = slot, .wanted_rows = wanted_rows, .channel = channel};
    Half(Other(side)).program.ops.push_back(pass);
    pass.kind = OpKind::kReceive;
    pass.in = Slot::kCount;
    pass.out = slot;
    Half(side).program.ops.push_back(pass);
    holds.on(side) = true;
  }
  void Wrote(Memory side, Slot slot) {
    holds_[static_cast<size_t>(slot)] = {};
    holds_[static_cast<size_t>(slot)].on(side) = true;
  }

  void Take(Memory side, WeightId id) {
    if (id >= 0) Half(side).weights[id] = model_.weights[id];
  }
  void TakeRows(Memory side, WeightId id, int64_t begin, int64_t end) {
    if (id < 0) return;
    Take(side, id);
    Half(side).weights[id].first_row = begin;
    Half(side).weights[id].n = end - begin;
  }
  void TakeColumns(Memory side, WeightId id, int64_t begin, int64_t end) {
    const int64_t cut = CutColumns(model_.weights[id].type()), k = model_.weights[id].k;
    Take(side, id);
    Half(side).weights[id].first_k = begin / cut * cut;
    Half(side).weights[id].k = std::min(k, (end + cut - 1) / cut * cut) - begin / cut * cut;
  }

  void Whole(const Op& op, Memory side) {
    for (const WeightId id : {op.weight, op.bias, op.positions, op.rope_factors}) Take(side, id);
    if (op.in != Slot::kCount) Need(side, op.in);
    if (op.kind == OpKind::kAttention) {
      Need(side, Slot::kKey);
      Need(side, Slot::kValue);
    }
    if (op.accumulate) Need(side, op.out);
    for (int i = 0; i < op.n_projections; ++i) {
      Take(side, op.projections[i].weight);
      Take(side, op.projections[i].bias);
      Wrote(side, op.projections[i].out);
    }
    Half(side).program.ops.push_back(op);
    if (op.kind != OpKind::kLinear) Wrote(side, op.out);
  }

  // Both sides attend to the tokens that they hold; the device merges.
  void SplitAttention(const Op& op) {
    for (const Memory side : {Memory::kDevice, Memory::kCpu}) {
      for (const Slot slot : {Slot::kQuery, Slot::kKey, Slot::kValue}) Need(side, slot);
      Op state = op;
      state.kind = OpKind::kAttentionState;
      state.out = side == Memory::kDevice ? Slot::kState : Slot::kOtherState;
      (side == Memory::kDevice ? state.end_token : state.first_token) = placement_.device_tokens;
      Half(side).program.ops.push_back(state);
      Wrote(side, state.out);
    }
    for (Model* half : {&split_.cpu, &split_.device})
      for (const Slot slot : {Slot::kState, Slot::kOtherState})
        half->program.width[static_cast<size_t>(slot)] =
            AttentionStateWidth(model_.config.n_head, model_.config.head_dim);
    Need(Memory::kDevice, Slot::kOtherState);
    Half(Memory::kDevice)
        .program.ops.push_back({.kind = OpKind::kAttentionMerge, .layer = op.layer, .in = Slot::kState, .out = op.out});
    Wrote(Memory::kDevice, op.out);
  }

  void SplitFfn(const Op& product, const Op& act, const Op& down) {
    const Memory home = FfnSide(product.layer), away = Other(home);
    const Slot out = down.projections[0].out;
    Need(home, product.in);
    Need(away, product.in);
    if (down.accumulate) Need(home, out);
    HalfFfn(home, product, act, down);
    Op partial = down;
    partial.accumulate = false;
    partial.out = partial.projections[0].out = Slot::kPartial;
    partial.projections[0].bias = -1;  // added once, at home
    HalfFfn(away, product, act, partial);
    for (Model* half : {&split_.cpu, &split_.device})
      half->program.width[static_cast<size_t>(Slot::kPartial)] = model_.config.n_embd;
    Wrote(away, Slot::kPartial);
    Need(home, Slot::kPartial);
    Half(home).program.ops.push_back({.kind = OpKind::kAdd, .layer = down.layer, .in = Slot::kPartial, .out = out});
    Wrote(home, out);
  }

  void HalfFfn(Memory side, Op product, Op act, Op down) {
    const auto n_hot = static_cast<int>(HotNeurons(product.layer));
    const int begin = side == Memory::kDevice ? 0 : n_hot, end = side == Memory::kDevice ? n_hot : model_.config.n_ff;
    for (int i = 0; i < product.n_projections; ++i) {
      TakeRows(side, product.projections[i].weight, begin, end);
      TakeRows(side, product.projections[i].bias, begin, end);
    }
    TakeColumns(side, down.projections[0].weight, begin, end);
    Take(side, down.projections[0].bias);
    act.begin = down.begin = begin;
    act.end = down.end = end;
    for (const Op& op : {product, act, down}) Half(side).program.ops.push_back(op);
  }

  const Model& model_;
  const Placement& placement_;
  SplitModel split_;
  std::array<Holds, kSlots> holds_{};
};

}  // namespace

SplitModel Split(const Model& model, const Placement& placement) {
  CHECK(IsPlacementOf(placement, model.config));
  return Splitter(Reorder(model, placement.orders), placement).Run();
}

Placement Restrict(const Device& device, const Model& model, KvTypes kv_types, Placement placement) {
  for (LayerPlacement& layer : placement.layers)
    if (!device.SupportsKv(kv_types)) layer.kv = Memory::kCpu;
  const Model ordered = Reorder(model, placement.orders);
  for (const Op& op : ordered.program.ops) {
    if (op.kind != OpKind::kLinear || SupportsWeightsOf(device, ordered, op)) continue;
    if (op.layer < 0)
      placement.head = Memory::kCpu;
    else if (op.in == Slot::kGate || op.projections[0].out == Slot::kGate)
      placement.layers[op.layer].n_hot = 0;
    else
      placement.layers[op.layer].attention = placement.layers[op.layer].kv = Memory::kCpu;
  }
  return placement;
}

}  // namespace thermocline
