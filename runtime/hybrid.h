// The device's part of an engine: what of the model it gets, and its half while it runs.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/device_plan.h"
#include "runtime/device_side.h"

namespace thermocline {

struct DeviceOptions {
  std::shared_ptr<Device> device;      // of this engine alone; null: the CPU computes everything
  std::optional<Placement> placement;  // what goes there; otherwise as much as its memory holds
  // Called before loading with what goes where, and with what went wrong that is no error; may be empty.
  std::function<void(const std::string& text)> on_note{};
  std::optional<HotNeurons> hot{};  // what is known of heat, where nobody placed anything
};

class Hybrid {
 public:
  // Null where nothing goes to the device: there is none, it has no room, or it fails (which on_note is told).
  static std::unique_ptr<Hybrid> Load(const GgufFile& file, const Model& model, Team& team, Isa isa,
                                      const DeviceOptions& options, KvTypes kv_types, const StepLimits& limits,
                                      const std::function<void(int64_t, int64_t)>& on_load);
  Hybrid(const Hybrid&) = delete;

  const Model& cpu_half() const { return split_.cpu; }
  const KvLayout& kv_layout() const { return layout_; }
  const Placement& placement() const { return placement_; }
  DeviceSide& side() { return *side_; }
  std::string LostBecause() const { return device_->LostBecause(); }

 private:
  Hybrid(std::shared_ptr<Device> device, const Model& model, Placement placement, KvTypes kv_types);

  std::shared_ptr<Device> device_;
  Placement placement_;
  SplitModel split_;
  KvLayout layout_;
  std::unique_ptr<DeviceSide> side_;  // goes before the device
};

}  // namespace thermocline
