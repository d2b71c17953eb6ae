#include "runtime/device_meter.h"

#include <doctest/doctest.h>

#include "gpu/emulated_device.h"
#include "runtime/emulated_ops.h"

namespace thermocline {

TEST_CASE("device meter: a device is found to be as slow as it is told to be") {
  EmulatedDevice device({.budget_bytes = 64 << 20, .bytes_per_s = 4e8, .link_bytes_per_s = 5e8, .launch_ns = 200'000},
                        MakeEmulatedOps());
  const DeviceRates rates = MeasureDevice(device);
  // At least so slow; a machine that others use, too, is slower, by any factor.
  CHECK(rates.bytes_per_s <= 4.4e8);
  CHECK(rates.bytes_per_s > 0);
  CHECK(rates.launch_s >= 180e-6);
  CHECK(rates.transfer_s >= 150e-6);
  // On a busy machine a waiter is woken late from short waits and in time from long ones: what is told apart as the way
  // and what lies beyond it is then wrong, but not their sum.
  constexpr double kBytes = 4 << 20;
  CHECK(rates.transfer_s + kBytes / rates.transfer_bytes_per_s >= kBytes / 5.5e8);
  CHECK(rates.transfer_bytes_per_s > 0);
}

TEST_CASE("device meter: a device that is lost, or has no room, says so") {
  EmulatedDevice lost({.budget_bytes = 64 << 20, .failures = {.launch = 100}}, MakeEmulatedOps());
  CHECK_THROWS_AS(MeasureDevice(lost), DeviceLost);
  EmulatedDevice small({.budget_bytes = 1 << 20}, MakeEmulatedOps());
  CHECK_THROWS_AS(MeasureDevice(small), DeviceOutOfMemory);
  CHECK(small.counts().bytes_in_use == 0);
}

}  // namespace thermocline
