#include "runtime/device_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/check.h"

namespace thermocline {
namespace {

// A piece of 16 MB keeps a link of 50 GB/s busy for a third of a millisecond, and an H100 for half of one with 512
// rows. Both buffers together are a sixteenth of a small memory.
constexpr int64_t kMaxPieceBytes = int64_t{16} << 20, kPieceShare = 32;
// Streaming may take so much of the memory; where it takes more, what is resident is worth more.
constexpr int64_t kStreamShare = 8;

// Placements in the order in which a device's memory is filled, by a step from 0 on, where nothing is on the device.
class Filling {
 public:
  Filling(const Device& device, const Model& model, KvTypes kv_types, const HotNeurons* hot, bool with_head)
      : device_(device), model_(model), kv_types_(kv_types), hot_(hot), with_head_(with_head) {
    for (int64_t block = 0; block < n_blocks(); ++block)
      for (int layer = 0; layer < n_layer(); ++layer) blocks_.push_back({layer, hot ? hot->heat[layer][block] : 0});
    std::stable_sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) { return a.heat > b.heat; });
  }

  int64_t n_layer() const { return model_.config.n_layer; }
  int64_t n_blocks() const { return (model_.config.n_ff + kHotBlock - 1) / kHotBlock; }  // per layer
  int64_t last() const { return n_layer() + with_head_ + n_layer() * n_blocks(); }

  Placement At(int64_t step) const {
    Placement placement = AllOnCpu(model_.config);
    if (hot_) placement.orders = hot_->orders;
    for (int64_t i = 0; i < std::min(step, n_layer()); ++i)
      if (device_.SupportsKv(kv_types_)) placement.layers[i].attention = placement.layers[i].kv = Memory::kDevice;
    for (int64_t i = 0; i < step - n_layer() - with_head_; ++i) placement.layers[blocks_[i].layer].n_hot += kHotBlock;
    for (LayerPlacement& layer : placement.layers) layer.n_hot = std::min<int64_t>(layer.n_hot, model_.config.n_ff);
    if (with_head_ && step > n_layer()) placement.head = Memory::kDevice;
    return Restrict(device_, model_, kv_types_, std::move(placement));
  }

 private:
  const Device& device_;
  const Model& model_;
  const KvTypes kv_types_;
  const HotNeurons* const hot_;
  const bool with_head_;
  struct Block {
    int layer;
    double heat;
  };
  std::vector<Block> blocks_;  // hottest first; those alike in turn from each layer
};

}  // namespace

KvLayout LayoutOf(const Placement& placement, const ModelConfig& config, KvTypes kv_types) {
  std::vector<bool> on_device;
  for (const LayerPlacement& layer : placement.layers) on_device.push_back(layer.kv == Memory::kDevice);
  KvLayout layout(config, kv_types, on_device);
  layout.device_tokens = placement.device_tokens;
  return layout;
}

bool UsesDevice(const Placement& placement) {
  return placement.head == Memory::kDevice ||
         std::any_of(placement.layers.begin(), placement.layers.end(),
                     [](const LayerPlacement& layer) { return layer.n_hot > 0 || layer.attention == Memory::kDevice; });
}

int64_t SuitablePieceBytes(int64_t budget_bytes) { return std::min(kMaxPieceBytes, budget_bytes / kPieceShare); }

Placement FillDevice(const Device& device, const Model& model, KvTypes kv_types, FfnMode ffn, const StepLimits& limits,
                     int64_t budget_bytes, int64_t piece_bytes, const HotNeurons* hot) {
  const bool may_stream = piece_bytes > 0 || device.StreamsUnasked();
  if (piece_bytes == 0) piece_bytes = SuitablePieceBytes(budget_bytes);
  const auto total = [&](const Placement& placement, bool streams) {
    const SplitModel split = Split(model, placement);
    std::optional<StreamedModel> streamed;
    if (streams) streamed = Stream(device, model, placement, split, kv_types, ffn, piece_bytes);
    const KvLayout layout = LayoutOf(placement, model.config, kv_types);
    return DeviceSide::BytesFor(device, split, streamed ? &*streamed : nullptr, layout, limits).total();
  };
  const auto fill = [&](bool streams) {
    const auto fits = [&](const Placement& placement) { return total(placement, streams) <= budget_bytes; };
    const Filling filling_head(device, model, kv_types, hot, true);
    const Filling filling(device, model, kv_types, hot, fits(filling_head.At(filling_head.n_layer() + 1)));
    int64_t good = 0, bad = filling.last() + 1;
    while (bad - good > 1) {
      const int64_t middle = (good + bad) / 2;
      (fits(filling.At(middle)) ? good : bad) = middle;
    }
    return filling.At(good);
  };
  const Placement most = fill(false);
  if (!may_stream) return most;
  const int64_t streaming = total(most, true) - total(most, false);
  return streaming > 0 && streaming <= budget_bytes / kStreamShare ? fill(true) : most;
}

std::string DescribePlan(const Device& device, const Placement& placement, const ModelConfig& config,
                         const DeviceBytes& bytes) {
  int64_t attention = 0, least = config.n_ff, most = 0;
  for (const LayerPlacement& layer : placement.layers) {
    attention += layer.attention == Memory::kDevice;
    least = std::min(least, layer.n_hot);
    most = std::max(most, layer.n_hot);
  }
  std::string text = fmt::format("{}: attention of {} of {} layers, ", device.name(), attention, config.n_layer);
  text += least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most);
  text += fmt::format(" of {} neurons a layer{}; ", config.n_ff, placement.head == Memory::kDevice ? ", the head" : "");
  const auto mb = [](int64_t n) { return static_cast<double>(n) / (1 << 20); };
  text += fmt::format("{:.1f} MB of weights, {:.1f} MB of keys and values, {:.1f} MB for a step, ", mb(bytes.weights),
                      mb(bytes.kv), mb(bytes.rows));
  if (bytes.streamed > 0) text += fmt::format("{:.1f} MB to stream the rest for prompts, ", mb(bytes.streamed));
  text += fmt::format("{:.1f} MB left", mb(device.free_bytes() - bytes.total()));
  return text;
}

}  // namespace thermocline
