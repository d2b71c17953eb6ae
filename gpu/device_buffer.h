// Memory that a device lends. Where the destructors are used, gpu/device.h is needed, too.
#pragma once

#include <cstdint>
#include <utility>

namespace thermocline {

using DeviceAddress = uint64_t;  // in a device's memory; 0: none

class Device;

// Memory of a device, given back with it. Must not outlive the device.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device, DeviceAddress address, int64_t bytes)
      : device_(&device), address_(address), bytes_(bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(address_, other.address_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer();

  DeviceAddress address() const { return address_; }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  DeviceAddress address_ = 0;
  int64_t bytes_ = 0;
};

// Page-locked memory of the host that the device reads and writes. Must not outlive the device.
class StagingBuffer {
 public:
  StagingBuffer() = default;
  StagingBuffer(Device& device, void* data, int64_t bytes) : device_(&device), data_(data), bytes_(bytes) {}
  StagingBuffer(StagingBuffer&& other) noexcept { *this = std::move(other); }
  StagingBuffer& operator=(StagingBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~StagingBuffer();

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace thermocline
