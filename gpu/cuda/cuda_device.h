// NVIDIA GPUs as devices (gpu/devices.h). This header needs no CUDA toolkit; what it declares is there in builds with
// CUDA.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gpu/devices.h"

namespace thermocline {

// By CUDA's index. None where there is no driver.
std::vector<DeviceInfo> FindCudaDevices();
// budget_bytes 0: what is free but for kDeviceReserveBytes. A step of up to 8 generated rows is one recorded graph of
// launches per number of rows. Throws DeviceError when the GPU cannot be used.
std::unique_ptr<Device> OpenCudaDevice(int index, int64_t budget_bytes);

}  // namespace thermocline
