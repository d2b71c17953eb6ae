// How fast a device is at what a generated row needs, measured on the device itself.
#pragma once

#include "gpu/device.h"
#include "predictor/placement_cost.h"

namespace thermocline {

// Takes up to kMaxDeviceMeterBytes of its memory, or half of what is free, and gives it its program: it is of no other
// use afterwards. Under a second on any device worth having. Throws DeviceError.
DeviceRates MeasureDevice(Device& device);

inline constexpr int64_t kMaxDeviceMeterBytes = int64_t{1} << 29;  // beyond every cache

}  // namespace thermocline
