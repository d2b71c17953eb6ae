#include "predictor/placement_cost.h"

#include <algorithm>
#include <map>
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
  CpuMeasurement(const Model& model, FfnMode mode, const std::vector<double>& active, Team& team)
      : model_(model), active_(active), meter_(model, team, ChooseIsa()), bundled_(model.config.n_layer) {
    if (mode == FfnMode::kDense) return;
    for (const GatedFfn& ffn : FindSparseFfns(model, mode)) bundled_[ffn.layer] = true;
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
    if (!bundled_[op.layer]) {
      seconds.ffn += meter_.Row(op);
      seconds.gate += Products(op);
    } else if (down) {
      seconds.neurons = Neurons(op.layer);  // whose input is not rounded as a whole
      seconds.up_down += seconds.neurons.At(active_[op.layer]);
    } else if (op.kind == OpKind::kLinear) {
      const BundleShape shape = Shape(op.layer);
      seconds.ffn += meter_.Row(op) + meter_.Spread(shape);
      seconds.gate += meter_.Product(op, 0, 1);
    } else {
      seconds.ffn += meter_.Row(op);
    }
  }

  BundleShape Shape(int layer) const {
    for (const GatedFfn& ffn : FindSparseFfns(model_, FfnMode::kThreshold)) {
      if (ffn.layer != layer) continue;
      const Weight &up = model_.weights[ffn.up], &down = model_.weights[ffn.down];
      return {BundleShape::UpType(up.type()), BundleShape::DownType(down.type()), up.k, up.n};
    }
    CHECK(false);
    return {};
  }

  // Once for all layers of such a shape: layers are many.
  const NeuronSeconds& Neurons(int layer) {
    const BundleShape shape = Shape(layer);
    const auto key = std::pair(shape.up, shape.down);
    if (const auto known = neurons_.find(key); known != neurons_.end()) return known->second;
    std::array<double, NeuronSeconds::kShares.size()> measured;
    for (size_t i = 0; i < measured.size(); ++i) measured[i] = meter_.Neurons(shape, NeuronSeconds::kShares[i]);
    return neurons_[key] = NeuronSeconds(measured);
  }

  const Model& model_;
  const std::vector<double>& active_;
  DecodeMeter meter_;
  std::vector<bool> bundled_;
  std::map<std::pair<DType, DType>, NeuronSeconds> neurons_;
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
  for (size_t i = 1; i < seconds_.size(); ++i) seconds_[i] = std::max(seconds_[i], seconds_[i - 1]);
}

double NeuronSeconds::At(double share) const {
  const size_t i = share < kShares[1] ? 0 : 1;
  const double slope = (seconds_[i + 1] - seconds_[i]) / (kShares[i + 1] - kShares[i]);
  return std::max(0.0, seconds_[i] + slope * (share - kShares[i]));
}

double CpuSeconds::sum() const {
  double sum = head;
  for (const CpuLayerSeconds& layer : layers)
    sum += layer.attention + layer.kv + layer.ffn + layer.gate + layer.up_down;
  return sum;
}

CpuSeconds MeasureCpu(const Model& model, FfnMode mode, const std::vector<double>& active, KvTypes kv_types,
                      int n_threads, int n_tokens) {
  Team team(n_threads);
  return CpuMeasurement(model, mode, active, team).Measure(kv_types, n_tokens);
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
    for (int64_t begin = 0; begin < config.n_ff; begin += kHotBlock) {
      const int64_t n = std::min<int64_t>(kHotBlock, config.n_ff - begin), bytes = ffn_bytes[l] * n / config.n_ff;
      const double part = static_cast<double>(n) / static_cast<double>(config.n_ff);
      const double up_down = heat.empty() ? seconds.up_down : seconds.neurons.At(heat[l][begin / kHotBlock]);
      layer.neurons.push_back({(seconds.gate + up_down) * part, read(bytes), bytes});
    }
  }
  return problem;
}

}  // namespace thermocline
