#include "models/kv_layout.h"

namespace thermocline {

KvLayout::KvLayout(const ModelConfig& config, KvTypes types, const std::vector<bool>& on_device)
    : types(types), head_bytes(KvHeadBytes(types, config.head_dim)), page_bytes{} {
  for (int i = 0; i < config.n_layer; ++i) {
    const int kind = config.IsWindowLayer(i) + (on_device.empty() || !on_device[i] ? 0 : 2);
    layers.push_back({kind, page_bytes[kind]});
    page_bytes[kind] += config.n_head_kv * head_bytes;
  }
}

}  // namespace thermocline
