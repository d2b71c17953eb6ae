// The devices of this machine. A build without CUDA knows none.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu/device.h"

namespace thermocline {

// What a device keeps free for others, and for what its driver takes without saying, unless a budget is given.
inline constexpr int64_t kDeviceReserveBytes = int64_t{512} << 20;

// Of a budget, what an NVIDIA GPU keeps for SetPrograms: activations, partial results of attention, logits, tables. A
// model of 7B takes 30 MB.
constexpr int64_t ProgramBytes(int64_t budget_bytes) { return std::min(int64_t{48} << 20, budget_bytes / 16); }

struct DeviceInfo {
  std::string name;
  int64_t total_bytes, free_bytes;
};

bool BuiltForDevices();  // whether this build could use any
std::vector<DeviceInfo> FindDevices();
// budget_bytes 0: what is free but for the reserve. `index` is one of FindDevices(). Throws DeviceError.
std::unique_ptr<Device> OpenDevice(int index, int64_t budget_bytes);

}  // namespace thermocline
