// A device that is none: memory of its own within a budget, a thread of its own for its queue, and arithmetic handed in
// by whoever makes it. It is as slow as it is told to be and fails when it is told to, so that splitting, merging,
// budgets and faults are tested on every machine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "gpu/device.h"

namespace thermocline {

// Executes single ops; addresses are pointers. Called by the queue's thread alone.
class DeviceOpExecutor {
 public:
  virtual ~DeviceOpExecutor() = default;
  virtual bool Supports(DType type) const = 0;
  // At SetPrograms: takes what memory the ops of all programs need. kReceive, kSend and kReceivePanels are none of its
  // business.
  virtual void Prepare(std::span<const DeviceOp> ops, const DeviceLimits& limits) = 0;
  virtual void Run(const DeviceOp& op, const DeviceStep& step) = 0;
};

// Which call fails, counted from 1 over the device's life; 0: none.
struct InjectedFailures {
  int64_t allocation = 0;  // of Allocate and AllocateStaging: DeviceOutOfMemory
  int64_t upload = 0;      // of Upload, UploadPanels, of what Begin and kReceivePanels take: the device is lost
  int64_t launch = 0;      // of an op: the device is lost
};

struct EmulatedDeviceOptions {
  int64_t budget_bytes = 0;
  double bytes_per_s = 0;       // of weights and KV read, at most; 0: as fast as it is
  double link_bytes_per_s = 0;  // of rows and panels between host and device, at most; 0: as fast as it is
  int64_t launch_ns = 0;        // an op takes at least so long
  bool f16_kv_only = false;
  bool packed_only = false;  // weights in panels, not floats
  InjectedFailures failures{};
};

struct DeviceCounts {
  int64_t allocations = 0, uploads = 0, launches = 0;
  int64_t bytes_in_use = 0, staging_bytes_in_use = 0;
};

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice(const EmulatedDeviceOptions& options, std::unique_ptr<DeviceOpExecutor> executor);
  ~EmulatedDevice() override;

  std::string name() const override { return "emulated device"; }
  int64_t free_bytes() const override;
  bool Supports(DType type) const override;
  bool SupportsKv(KvTypes types) const override;
  void Upload(DeviceAddress to, std::span<const uint8_t> from) override;
  void Download(std::span<uint8_t> to, DeviceAddress from) override;
  void UploadPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) override;
  void SetPrograms(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) override;
  void Begin(const DeviceStep& step) override;
  void Raise(int flag) noexcept override;
  [[nodiscard]] bool Await(int flag) noexcept override;
  [[nodiscard]] bool Finish() noexcept override;
  void Abandon() noexcept override;
  std::string LostBecause() const override;

  // From any thread: the device is lost from now on.
  void Lose();
  // From the next call on, counted from there.
  void Inject(const InjectedFailures& failures);
  DeviceCounts counts() const;

 private:
  DeviceAddress AllocateBytes(int64_t bytes, const char* what) override;
  void FreeBytes(DeviceAddress address, int64_t bytes) noexcept override;
  void* AllocateStagingBytes(int64_t bytes, const char* what) override;
  void FreeStagingBytes(void* data, int64_t bytes) noexcept override;

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace thermocline
