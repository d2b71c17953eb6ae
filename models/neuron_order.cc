#include "models/neuron_order.h"

#include <algorithm>

#include "models/check.h"
#include "models/hash.h"
#include "models/model.h"

namespace thermocline {
namespace {

// The products around an FFN's activation.
bool ReadsNeurons(const Op& op) { return op.kind == OpKind::kLinear && op.in == Slot::kGate; }
bool WritesNeurons(const Op& op) {
  return op.kind == OpKind::kLinear && (op.projections[0].out == Slot::kGate || op.projections[0].out == Slot::kUp);
}

std::span<const uint8_t> BytesOf(std::span<const int32_t> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

}  // namespace

NeuronOrder::NeuronOrder(std::vector<int32_t> neurons, int unit) : neurons_(std::move(neurons)), unit_(unit) {
  CHECK(unit > 0 && size() % unit == 0);
  std::vector<bool> seen(neurons_.size());
  for (int64_t i = 0; i < size(); ++i) {
    const int32_t neuron = neurons_[i], first = neurons_[i / unit * unit];
    CHECK(neuron >= 0 && neuron < size() && !seen[neuron]);
    CHECK(first % unit == 0 && neuron == first + i % unit);
    seen[neuron] = true;
  }
}

uint64_t NeuronOrder::hash() const {
  Hash hash;
  hash.Add(BytesOf(neurons_));
  return hash.value();
}

std::vector<int16_t> OrderedWeights(const Model& model, int layer) {
  std::vector<int16_t> ids;
  for (const Op& op : model.program.ops) {
    if (op.layer != layer || !(ReadsNeurons(op) || WritesNeurons(op))) continue;
    for (int i = 0; i < op.n_projections; ++i) {
      ids.push_back(op.projections[i].weight);
      if (WritesNeurons(op) && op.projections[i].bias >= 0) ids.push_back(op.projections[i].bias);
    }
  }
  return ids;
}

Model Reorder(const Model& model, const NeuronOrders& orders) {
  Model reordered = model;
  if (orders.empty()) return reordered;
  CHECK(std::ssize(orders) == model.config.n_layer);
  for (const Op& op : model.program.ops) {
    if (!ReadsNeurons(op) && !WritesNeurons(op)) continue;
    const std::shared_ptr<const NeuronOrder>& order = orders[op.layer];
    CHECK(!order || order->size() == model.config.n_ff);
    for (int i = 0; i < op.n_projections; ++i) {
      const Projection& projection = op.projections[i];
      if (ReadsNeurons(op)) {
        reordered.weights[projection.weight].columns = order;
      } else {
        for (const WeightId id : {projection.weight, projection.bias})
          if (id >= 0) reordered.weights[id].rows = order;
      }
    }
  }
  return reordered;
}

uint64_t HashOf(const NeuronOrders& orders) {
  if (std::all_of(orders.begin(), orders.end(), [](const auto& order) { return !order; })) return 0;
  std::vector<uint64_t> hashes;
  for (const auto& order : orders) hashes.push_back(order ? order->hash() : 0);
  Hash hash;
  hash.Add({reinterpret_cast<const uint8_t*>(hashes.data()), hashes.size() * sizeof hashes[0]});
  return hash.value();
}

int LosslessUnit(const Model& model, int layer) {
  for (const Op& op : model.program.ops)
    if (op.layer == layer && ReadsNeurons(op)) return model.weights[op.projections[0].weight].block();
  CHECK(!"a layer without an FFN");
  return 1;
}

}  // namespace thermocline
