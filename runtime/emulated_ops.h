// What an emulated device computes with: the CPU's kernels, on the one thread of the device's queue.
#pragma once

#include <memory>

#include "gpu/emulated_device.h"

namespace thermocline {

std::unique_ptr<DeviceOpExecutor> MakeEmulatedOps();

}  // namespace thermocline
