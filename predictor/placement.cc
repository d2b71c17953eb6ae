#include "predictor/placement.h"

#include <algorithm>

namespace thermocline {

Placement AllOnCpu(const ModelConfig& config) {
  return {.layers = std::vector<LayerPlacement>(static_cast<size_t>(config.n_layer))};
}

bool IsPlacementOf(const Placement& placement, const ModelConfig& config) {
  const auto fits = [&](const LayerPlacement& layer) {
    const bool in_blocks = layer.n_hot % kHotBlock == 0 || layer.n_hot == config.n_ff;
    return layer.n_hot >= 0 && layer.n_hot <= config.n_ff && in_blocks &&
           (layer.kv == Memory::kCpu || layer.attention == Memory::kDevice);
  };
  if (placement.SplitsKv() && (placement.device_tokens <= 0 || placement.device_tokens % kPageTokens != 0))
    return false;
  const auto orders = [&](const std::shared_ptr<const NeuronOrder>& order) {
    return !order || order->size() == config.n_ff;
  };
  if (!placement.orders.empty() && placement.orders.size() != placement.layers.size()) return false;
  return placement.layers.size() == static_cast<size_t>(config.n_layer) &&
         std::all_of(placement.orders.begin(), placement.orders.end(), orders) &&
         std::all_of(placement.layers.begin(), placement.layers.end(), fits);
}

}  // namespace thermocline
