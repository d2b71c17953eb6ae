#include "runtime/adaptation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "cpu/bundle.h"
#include "models/error.h"
#include "models/packed_format.h"
#include "predictor/heat_order.h"
#include "predictor/recent_heat.h"
#include "runtime/split.h"

namespace thermocline {

CpuReads ReadsOf(const Model& cpu_half, FfnMode ffn) {
  CpuReads reads{0, std::vector<double>(static_cast<size_t>(cpu_half.config.n_layer))};
  std::vector<bool> skipped(cpu_half.weights.size());
  const std::vector<GatedFfn> ffns = ffn == FfnMode::kDense ? std::vector<GatedFfn>{} : FindSparseFfns(cpu_half, ffn);
  for (const GatedFfn& gated : ffns) {
    const Weight &up = cpu_half.weights[gated.up], &down = cpu_half.weights[gated.down];
    skipped[gated.up] = skipped[gated.down] = true;
    const BundleShape shape(BundleShape::UpType(up.type()), BundleShape::DownType(down.type()), up.k, up.n);
    reads.neuron_bytes[gated.layer] = static_cast<double>(shape.bundle_bytes());
  }
  for (const Op& op : cpu_half.program.ops) {
    if (op.kind != OpKind::kLinear) continue;
    for (int i = 0; i < op.n_projections; ++i) {
      const WeightId id = op.projections[i].weight;
      const Weight& weight = cpu_half.weights[id];
      if (!skipped[id]) reads.always += static_cast<double>(PackedBytes(weight.type(), weight.n, weight.k));
    }
  }
  return reads;
}

Adaptation::Adaptation(Engine& engine, const Model& model, FfnMode ffn, Heat profile)
    : engine_(engine), profile_(std::move(profile)) {
  const Placement placement = engine.placement();
  reads_ = ReadsOf(Split(model, placement).cpu, ffn);
  const bool by_neurons = FreeOrder(model) == HeatOrder::kNeurons;
  for (int layer = 0; layer < model.config.n_layer; ++layer) {
    const NeuronOrder* order = placement.orders.empty() ? nullptr : placement.orders[layer].get();
    units_.push_back(order ? order->unit() : by_neurons ? 1 : LosslessUnit(model, layer));
  }
}

Adaptation::~Adaptation() { End(); }

void Adaptation::AfterAnswer() {
  const Firings firings = engine_.TakeFirings();
  AddFirings(firings, kHeatHalfLife, profile_.recent);
  plan_ = {};
  if (ended_ || !engine_.CanReorder()) return;
  plan_ = PlanMoves(engine_.placement(), WithRecent(profile_), units_, reads_);
  if (plan_.gain <= kReplanGain) plan_.moves.clear();
}

void Adaptation::Begin() {
  if (plan_.moves.empty() || ended_) return;
  stop_ = false;
  worker_ = std::thread([this] { Move(); });
}

void Adaptation::Move() {
  try {
    while (!plan_.moves.empty()) {
      const LayerMove move = plan_.moves.front();
      if (!engine_.Reorder(move.layer, move.order, stop_)) return;
      plan_.moves.erase(plan_.moves.begin());
      ++n_moved_;
    }
  } catch (const std::exception& error) {
    failure_ = error.what();
  }
}

std::string Adaptation::End() {
  if (!worker_.joinable()) return {};
  stop_ = true;
  worker_.join();
  if (failure_.empty()) return {};
  ended_ = true;
  plan_.moves.clear();
  return std::exchange(failure_, {});
}

std::string Adaptation::Describe() const {
  if (plan_.hits == 0) return {};
  std::string text = fmt::format("{:.1f} % of firings on the device", 100 * plan_.hits);
  if (!plan_.moves.empty())
    text += fmt::format(", {:.1f} % when {} layers have moved", 100 * plan_.best_hits, plan_.moves.size());
  return text;
}

}  // namespace thermocline
