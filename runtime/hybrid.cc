#include "runtime/hybrid.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/error.h"

namespace thermocline {
namespace {

// After an allocation failed, so much of what was asked for is asked for next.
constexpr double kSmallerPlan = 7.0 / 8;

}  // namespace

Hybrid::Hybrid(std::shared_ptr<Device> device, const Model& model, Placement placement, KvTypes kv_types)
    : device_(std::move(device)),
      placement_(std::move(placement)),
      split_(Split(model, placement_)),
      layout_(LayoutOf(placement_, model.config, kv_types)) {}

void Hybrid::SetOrder(int layer, std::shared_ptr<const NeuronOrder> order) {
  placement_.orders.resize(placement_.layers.size());
  placement_.orders[layer] = std::move(order);
}

DeviceBytes Hybrid::Bytes(const StepLimits& limits) const {
  return DeviceSide::BytesFor(*device_, split_, streamed(), layout_, limits);
}

void Hybrid::PlanStream(const Model& model, KvTypes kv_types, FfnMode ffn, const StepLimits& limits,
                        int64_t piece_bytes, int64_t budget_bytes) {
  if (piece_bytes == 0) piece_bytes = SuitablePieceBytes(budget_bytes);
  streamed_ = Stream(*device_, model, placement_, split_, kv_types, ffn, piece_bytes);
  if (Bytes(limits).total() > budget_bytes) streamed_.reset();
}

std::unique_ptr<Hybrid> Hybrid::Load(const GgufFile& file, const Model& model, Team& team, Isa isa,
                                     const DeviceOptions& options, KvTypes kv_types, const StepLimits& limits,
                                     const LoadOptions& load) {
  if (!options.device) return nullptr;
  if (options.placement && !IsPlacementOf(*options.placement, model.config))
    throw Error(
        "the placement does not fit {}: it takes {} layers, n_hot up to {} in steps of {}, and keys and values on the "
        "device only where attention is",
        file.path(), model.config.n_layer, model.config.n_ff, kHotBlock);
  Device& device = *options.device;
  const HotNeurons* hot = options.hot ? &*options.hot : nullptr;
  const auto note = [&](const std::string& text) {
    if (options.on_note) options.on_note(text);
  };
  int64_t budget = device.free_bytes();
  const int64_t piece_bytes = options.stream.piece_bytes;
  const auto fill = [&] { return FillDevice(device, model, kv_types, load.ffn, limits, budget, piece_bytes, hot); };
  Placement placement = options.placement ? Restrict(device, model, kv_types, *options.placement) : fill();
  try {
    for (; UsesDevice(placement); placement = fill()) {
      std::unique_ptr<Hybrid> hybrid(new Hybrid(options.device, model, std::move(placement), kv_types));
      if (piece_bytes > 0 || device.StreamsUnasked())
        hybrid->PlanStream(model, kv_types, load.ffn, limits, piece_bytes, budget);
      const DeviceBytes bytes = hybrid->Bytes(limits);
      try {
        note(DescribePlan(device, hybrid->placement_, model.config, bytes));
        hybrid->side_ =
            std::make_unique<DeviceSide>(device, hybrid->split_, hybrid->streamed(), hybrid->layout_, limits);
        hybrid->side_->Load(file, team, isa, load.on_load);
        return hybrid;
      } catch (const DeviceOutOfMemory& error) {
        note(fmt::format("{}; it gets less", error.what()));
        budget = static_cast<int64_t>(kSmallerPlan * static_cast<double>(std::min(budget, bytes.total())));
      }
    }
    if (options.placement && !UsesDevice(*options.placement))
      note("the placement leaves everything to the CPU");
    else if (std::ranges::none_of(model.weights,
                                  [&](const Weight& w) { return w.matrix && device.Supports(w.type()); }))
      note(fmt::format("{} has no kernels for weights of these types; the CPU computes everything", device.name()));
    else
      note(fmt::format("{}: {:.1f} MB hold no part of this model; the CPU computes everything", device.name(),
                       static_cast<double>(device.free_bytes()) / (1 << 20)));
  } catch (const DeviceError& error) {
    note(fmt::format("{}; the CPU computes everything", error.what()));
  }
  return nullptr;
}

}  // namespace thermocline
