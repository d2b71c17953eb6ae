#include "predictor/placement_cost.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "cpu/decode_meter.h"
#include "cpu/isa.h"
#include "cpu/team.h"
#include "models/check.h"
#include "models/packed_format.h"

namespace thermocline {
namespace {

// Whether the op belongs to the FFN: what stands behind the product that reads attention, and its norm.
enum class Part { kAttention, kFfn, kOutside };

// By op of the program.
std::vector<Part> PartsOf(const Model& model) {
  std::vector<Part> parts;
  int layer = -1;
  bool attended = false;
  for (const Op& op : model.program.ops) {
    if (op.layer != layer) attended = false;
    layer = op.layer;
    // A norm of what attention added still belongs to it.
    const bool post_norm = op.kind == OpKind::kNorm && op.in == Slot::kBranch;
    const bool ffn = attended && !(post_norm && parts.back() == Part::kAttention);
    parts.push_back(op.layer < 0 ? Part::kOutside : ffn ? Part::kFfn : Part::kAttention);
    attended |= op.kind == OpKind::kLinear && op.in == Slot::kAttention;
  }
  return parts;
}

int64_t WeightBytes(const Model& model, const Op& op) {
  int64_t bytes = 0;
  for (int i = 0; i < op.n_projections; ++i) {
    const Weight& weight = model.weights[op.projections[i].weight];
    bytes += PackedBytes(weight.type(), weight.n, weight.k);
  }
  return bytes;
}

class CpuMeasurement {
 public:
  CpuMeasurement(const Model& model, FfnMode mode, const NeuronShares& shares, Team& team)
      : model_(model), mode_(mode), shares_(shares), meter_(model, team, ChooseIsa()), ffns_(model.config.n_layer) {
    if (mode == FfnMode::kDense) return;
    for (const GatedFfn& ffn : FindSparseFfns(model, mode)) ffns_[ffn.layer] = ffn;
  }

  CpuSeconds Measure(KvTypes kv_types, int n_tokens) {
    CpuSeconds seconds{.layers = std::vector<CpuLayerSeconds>(static_cast<size_t>(model_.config.n_layer))};
    const std::vector<double> attention = meter_.Attention(kv_types, n_tokens);
    for (size_t i = 0; i < attention.size(); ++i) seconds.layers[i].kv = attention[i];
    const std::vector<Part> parts = PartsOf(model_);
    for (size_t i = 0; i < parts.size(); ++i) {
      const Op& op = model_.program.ops[i];
      if (parts[i] == Part::kOutside) {
        seconds.head += meter_.Row(op) + Products(op);
      } else if (parts[i] == Part::kAttention) {
        seconds.layers[op.layer].attention += meter_.Row(op) + Products(op);
      } else {
        AddFfn(op, seconds.layers[op.layer]);
      }
    }
    return seconds;
  }

 private:
  double Products(const Op& op) { return op.kind == OpKind::kLinear ? meter_.Product(op, 0, op.n_projections) : 0; }

  void AddFfn(const Op& op, CpuLayerSeconds& seconds) {
    const bool down = op.kind == OpKind::kLinear && op.in == Slot::kGate;
    if (!ffns_[op.layer]) {
      seconds.ffn += meter_.Row(op);
      seconds.gate += Products(op);
    } else if (down) {
      seconds.neurons = Neurons(op.layer);  // whose input is not rounded as a whole
      seconds.up_down += seconds.neurons.At(shares_.active[op.layer]);
    } else if (op.kind == OpKind::kLinear) {
      const BundleShape shape = Shape(op.layer);
      seconds.ffn += meter_.Row(op) + meter_.Spread(shape);
      if (mode_ != FfnMode::kPredicted) {
        seconds.gate += meter_.Product(op, 0, 1);
        return;
      }
      const double named = shares_.named[op.layer];
      seconds.gates = Gates(op.layer);
      seconds.gate += seconds.gates.At(named);
      seconds.named_per_firing = named / std::max(shares_.active[op.layer], 1e-6);
    } else {
      seconds.ffn += meter_.Row(op);
    }
  }

  BundleShape Shape(int layer) const {
    const Weight &up = model_.weights[ffns_[layer]->up], &down = model_.weights[ffns_[layer]->down];
    return {BundleShape::UpType(up.type()), BundleShape::DownType(down.type()), up.k, up.n};
  }

  // Once for all layers of such a shape: layers are many.
  const NeuronSeconds& Neurons(int layer) {
    const BundleShape shape = Shape(layer);
    return Known(neurons_, std::pair(shape.up, shape.down), [&](double share) { return meter_.Neurons(shape, share); });
  }

  const NeuronSeconds& Gates(int layer) {
    const Weight& gate = model_.weights[ffns_[layer]->gate];
    const BundleShape shape = BundleShape::Rows(BundleShape::UpType(gate.type()), gate.k, gate.n);
    const int64_t rank = shares_.ranks[layer];
    return Known(gates_, std::pair(shape.up, rank),
                 [&](double share) { return meter_.PredictedGates(shape, rank, share); });
  }

  template <typename Key, typename Measure>
  static const NeuronSeconds& Known(std::map<Key, NeuronSeconds>& known, const Key& key, const Measure& measure) {
    if (const auto found = known.find(key); found != known.end()) return found->second;
    std::array<double, NeuronSeconds::kShares.size()> measured;
    for (size_t i = 0; i < measured.size(); ++i) measured[i] = measure(NeuronSeconds::kShares[i]);
    return known[key] = NeuronSeconds(measured);
  }

  const Model& model_;
  const FfnMode mode_;
  const NeuronShares& shares_;
  DecodeMeter meter_;
  std::vector<std::optional<GatedFfn>> ffns_;  // by layer: those in bundles
  std::map<std::pair<DType, DType>, NeuronSeconds> neurons_;
  std::map<std::pair<DType, int64_t>, NeuronSeconds> gates_;
};

// What stays with the CPU wherever everything else is: tables that are gathered from. With a tied embedding the head is
// one of them.
void CountTables(const Model& model, PlacementProblem& problem) {
  std::vector<WeightId> tables, heads;
  for (const Op& op : model.program.ops) {
    if (op.kind == OpKind::kEmbed) tables = {op.weight, op.positions};
    if (op.kind == OpKind::kLinear && op.layer < 0) heads.push_back(op.projections[0].weight);
  }
  for (const WeightId id : tables) {
    if (id < 0) continue;
    const Weight& weight = model.weights[id];
    problem.cpu_only_bytes += PackedBytes(weight.type(), weight.n, weight.k);
    problem.cpu_keeps_head |= std::find(heads.begin(), heads.end(), id) != heads.end();
  }
}

}  // namespace

NeuronSeconds::NeuronSeconds(const std::array<double, 3>& measured) : seconds_(measured) {
  auto& [few, some, most] = seconds_;
  some = std::max(some, few);
  most = std::max(most, some);
  some = std::max(some, most * kShares[1] / kShares[2]);
  few = std::max(few, some * kShares[0] / kShares[1]);
  some = std::max(some, std::lerp(few, most, (kShares[1] - kShares[0]) / (kShares[2] - kShares[0])));
}

double NeuronSeconds::At(double share) const {
  const size_t i = share < kShares[1] ? 0 : 1;
  const double slope = (seconds_[i + 1] - seconds_[i]) / (kShares[i + 1] - kShares[i]);
  return std::max(0.0, seconds_[i] + slope * (share - kShares[i]));  // roundings aside, never below 0
}

double CpuSeconds::sum() const {
  double sum = head;
  for (const CpuLayerSeconds& layer : layers)
    sum += layer.attention + layer.kv + layer.ffn + layer.gate + layer.up_down;
  return sum;
}

CpuSeconds MeasureCpu(const Model& model, FfnMode mode, const NeuronShares& shares, KvTypes kv_types, int n_threads,
                      int n_tokens) {
  Team team(n_threads);
  return CpuMeasurement(model, mode, shares, team).Measure(kv_types, n_tokens);
}

PlacementProblem MakeProblem(const Model& model, const CpuSeconds& cpu, const DeviceRates& device, KvTypes kv_types,
                             int n_tokens, const std::vector<std::vector<double>>& heat) {
  const ModelConfig& config = model.config;
  const auto transfer = [&](int64_t floats) {
    return device.transfer_s + 4 * static_cast<double>(floats) / device.transfer_bytes_per_s;
  };
  const auto read = [&](int64_t bytes) { return static_cast<double>(bytes) / device.bytes_per_s; };
  PlacementProblem problem;
  problem.n_ff = config.n_ff;
  problem.layers.resize(cpu.layers.size());
  problem.handover_s = transfer(config.n_embd);
  problem.merge_s = 2 * transfer(config.n_embd);
  std::vector<int64_t> ffn_bytes(cpu.layers.size());
  const KvLayout layout(config, kv_types);
  const std::vector<Part> parts = PartsOf(model);
  for (size_t i = 0; i < parts.size(); ++i) {
    const Op& op = model.program.ops[i];
    const int64_t bytes = WeightBytes(model, op);
    if (parts[i] == Part::kOutside) {
      if (op.kind == OpKind::kEmbed) continue;
      problem.head.bytes += bytes;
      problem.head.device_s += device.launch_s + read(bytes);
      continue;
    }
    LayerCost& layer = problem.layers[op.layer];
    if (op.kind == OpKind::kAttention) {
      const int64_t seen = op.window > 0 ? std::min(op.window, n_tokens) : n_tokens;
      const int64_t pages = (seen + kPageTokens - 1) / kPageTokens;
      layer.kv.bytes = pages * config.n_head_kv * layout.head_bytes;
      layer.kv.device_s = device.launch_s + read(layer.kv.bytes);
    } else if (parts[i] == Part::kAttention) {
      layer.attention.bytes += bytes;
      layer.attention.device_s += device.launch_s + read(bytes);
    } else {
      ffn_bytes[op.layer] += bytes;
      layer.ffn.device_s += device.launch_s;
    }
  }
  CountTables(model, problem);
  problem.head.cpu_s = cpu.head;
  problem.head.device_s += transfer(config.n_vocab);
  for (size_t l = 0; l < cpu.layers.size(); ++l) {
    LayerCost& layer = problem.layers[l];
    const CpuLayerSeconds& seconds = cpu.layers[l];
    layer.attention.cpu_s = seconds.attention;
    layer.kv.cpu_s = seconds.kv;
    layer.ffn.cpu_s = seconds.ffn;
    double share = 1;  // of tokens for which a block's neurons fire
    for (int64_t begin = 0; begin < config.n_ff; begin += kHotBlock) {
      const int64_t n = std::min<int64_t>(kHotBlock, config.n_ff - begin), bytes = ffn_bytes[l] * n / config.n_ff;
      const double part = static_cast<double>(n) / static_cast<double>(config.n_ff);
      double gate = seconds.gate, up_down = seconds.up_down;
      if (!heat.empty()) {
        // Sums of other roundings may have put a block a hair above the one before it.
        share = std::min(share, heat[l][begin / kHotBlock]);
        up_down = seconds.neurons.At(share);
        if (seconds.named_per_firing > 0) gate = seconds.gates.At(std::min(1.0, share * seconds.named_per_firing));
      }
      layer.neurons.push_back({(gate + up_down) * part, read(bytes), bytes});
    }
  }
  return problem;
}

}  // namespace thermocline
