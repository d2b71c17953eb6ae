#include "gpu/devices.h"

#ifdef THERMOCLINE_CUDA
#include "gpu/cuda/cuda_device.h"
#else
#include "models/check.h"
#endif

namespace thermocline {

#ifdef THERMOCLINE_CUDA

bool BuiltForDevices() { return true; }
std::vector<DeviceInfo> FindDevices() { return FindCudaDevices(); }
std::unique_ptr<Device> OpenDevice(int index, int64_t budget_bytes) { return OpenCudaDevice(index, budget_bytes); }

#else

bool BuiltForDevices() { return false; }
std::vector<DeviceInfo> FindDevices() { return {}; }

std::unique_ptr<Device> OpenDevice(int, int64_t) {
  CHECK(!"no such device");
  return nullptr;
}

#endif

}  // namespace thermocline
