// The device's part of an engine: what of the model it gets, and its half while it runs.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "cpu/weights.h"
#include "runtime/device_plan.h"
#include "runtime/device_side.h"
#include "runtime/stream.h"

namespace thermocline {

// Prompts for which the device is sent the CPU's weights (runtime/stream.h).
struct StreamOptions {
  int min_rows = 0;         // of a step; 0: from as many on as were measured to pay
  int64_t piece_bytes = 0;  // 0: as many as suit the device's memory
};

struct DeviceOptions {
  std::shared_ptr<Device> device;      // of this engine alone; null: the CPU computes everything
  std::optional<Placement> placement;  // what goes there; otherwise as much as its memory holds
  // Called before loading with what goes where, and with what went wrong that is no error; may be empty.
  std::function<void(const std::string& text)> on_note{};
  StreamOptions stream{};
  std::optional<HotNeurons> hot{};  // what is known of heat, where nobody placed anything
};

class Hybrid {
 public:
  // Null where nothing goes to the device: there is none, it has no room, or it fails (which on_note is told).
  // load: how the CPU will hold its half.
  static std::unique_ptr<Hybrid> Load(const GgufFile& file, const Model& model, Team& team, Isa isa,
                                      const DeviceOptions& options, KvTypes kv_types, const StepLimits& limits,
                                      const LoadOptions& load);
  Hybrid(const Hybrid&) = delete;

  const Model& cpu_half() const { return split_.cpu; }
  // What the CPU does in a step that is streamed; null where none can be.
  const Program* streamed_program() const { return streamed_ ? &streamed_->split.cpu.program : nullptr; }
  const KvLayout& kv_layout() const { return layout_; }
  const Placement& placement() const { return placement_; }
  DeviceSide& side() { return *side_; }
  // What both sides hold of the layer's FFN now.
  void SetOrder(int layer, std::shared_ptr<const NeuronOrder> order);
  std::string LostBecause() const { return device_->LostBecause(); }

 private:
  Hybrid(std::shared_ptr<Device> device, const Model& model, Placement placement, KvTypes kv_types);
  // Streams where that fits the budget, too.
  void PlanStream(const Model& model, KvTypes kv_types, FfnMode ffn, const StepLimits& limits, int64_t piece_bytes,
                  int64_t budget_bytes);
  DeviceBytes Bytes(const StepLimits& limits) const;
  const StreamedModel* streamed() const { return streamed_ ? &*streamed_ : nullptr; }

  std::shared_ptr<Device> device_;
  Placement placement_;
  SplitModel split_;
  std::optional<StreamedModel> streamed_;
  KvLayout layout_;
  std::unique_ptr<DeviceSide> side_;  // goes before the device
};

}  // namespace thermocline
