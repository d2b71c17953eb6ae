#include "predictor/heat_order.h"

#include <algorithm>
#include <numeric>

#include "models/check.h"
#include "models/model.h"
#include "predictor/placement.h"

namespace thermocline {

// Hardly any neuron is above the highest, and hardly any below the lowest.
int64_t MiddleTarget(const Heat& heat) { return std::ssize(heat.targets) / 2; }

std::span<const double> ProfileCounts(const Heat& heat, int layer) {
  return std::span(heat.layers[layer].fired).subspan(MiddleTarget(heat) * heat.n_ff, heat.n_ff);
}

std::shared_ptr<const NeuronOrder> OrderByCounts(std::span<const double> counts, int unit) {
  const int64_t n_units = std::ssize(counts) / unit;
  std::vector<double> sums(static_cast<size_t>(n_units));
  for (int64_t i = 0; i < std::ssize(counts); ++i) sums[i / unit] += counts[i];
  std::vector<int32_t> units(sums.size()), neurons;
  std::iota(units.begin(), units.end(), 0);
  std::stable_sort(units.begin(), units.end(), [&](int32_t a, int32_t b) { return sums[a] > sums[b]; });
  for (const int32_t first : units)
    for (int i = 0; i < unit; ++i) neurons.push_back(first * unit + i);
  return std::make_shared<const NeuronOrder>(std::move(neurons), unit);
}

const char* Name(HeatOrder by) { return by == HeatOrder::kBlocks ? "blocks" : "neurons"; }

std::optional<HeatOrder> FindHeatOrder(std::string_view name) {
  for (const HeatOrder by : {HeatOrder::kBlocks, HeatOrder::kNeurons})
    if (name == Name(by)) return by;
  return std::nullopt;
}

NeuronOrders HottestFirst(const Model& model, const Heat& heat, HeatOrder by) {
  CHECK(heat.n_ff == model.config.n_ff && std::ssize(heat.layers) == model.config.n_layer);
  NeuronOrders orders;
  for (int layer = 0; layer < model.config.n_layer; ++layer)
    orders.push_back(
        OrderByCounts(ProfileCounts(heat, layer), by == HeatOrder::kNeurons ? 1 : LosslessUnit(model, layer)));
  return orders;
}

std::vector<std::vector<double>> BlockHeat(const Heat& heat, const NeuronOrders& orders) {
  std::vector<std::vector<double>> shares(heat.layers.size());
  const double n_tokens = std::max<double>(1, static_cast<double>(heat.n_counted));
  for (size_t layer = 0; layer < shares.size(); ++layer) {
    const std::span<const double> counts = ProfileCounts(heat, static_cast<int>(layer));
    const NeuronOrder* order = orders.empty() ? nullptr : orders[layer].get();
    const int64_t together = std::max(kHotBlock, order ? order->unit() : 0);
    for (int64_t begin = 0; begin < heat.n_ff; begin += together) {
      const int64_t end = std::min(begin + together, heat.n_ff);
      double sum = 0;
      for (int64_t i = begin; i < end; ++i) sum += counts[order ? (*order)[i] : i];
      const double share = sum / (n_tokens * static_cast<double>(end - begin));
      for (int64_t block = begin; block < end; block += kHotBlock) shares[layer].push_back(share);
    }
  }
  return shares;
}

HotNeurons ByHeat(const Model& model, const Heat& heat, HeatOrder by) {
  HotNeurons hot{HottestFirst(model, heat, by), {}};
  hot.heat = BlockHeat(heat, hot.orders);
  return hot;
}

HeatOrder FreeOrder(const Model& model) {
  for (const Op& op : model.program.ops) {
    if (op.kind != OpKind::kLinear || op.in != Slot::kGate) continue;
    const Weight& down = model.weights[op.projections[0].weight];
    if (down.type() != DType::kQ8_0 && down.block() > 1) return HeatOrder::kBlocks;
  }
  return HeatOrder::kNeurons;
}

}  // namespace thermocline
