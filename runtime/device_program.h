// The device's half of a split model as the descriptors of gpu/device.h, with the addresses where everything stands.
#pragma once

#include <array>
#include <vector>

#include "gpu/device.h"
#include "runtime/split.h"

namespace thermocline {

struct DeviceMap {
  std::array<DeviceRows, static_cast<size_t>(Slot::kCount)> slots{};
  std::vector<DeviceMatrix> matrices;  // by WeightId
  std::vector<DeviceAddress> vectors;  // by WeightId
  struct Rope {
    const Op* op;  // the first that rotates by these frequencies
    DeviceAddress frequencies;
    DeviceRows table;  // of a step
  };
  std::vector<Rope> ropes;
  std::vector<HostRows> channels;
};

// Ropes of a program that differ, as their first ops.
std::vector<const Op*> DistinctRopes(const Program& program);

std::vector<DeviceOp> MakeDeviceProgram(const Model& half, const KvLayout& layout, const DeviceMap& map);

}  // namespace thermocline
