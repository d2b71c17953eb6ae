// Anonymous memory straight from the kernel: zeroed, page-aligned, in huge pages where they are to be had (aligned to
// them from their size on), taken when first touched.
#pragma once

#include <cstdint>
#include <utility>

namespace thermocline {

class Buffer {
 public:
  Buffer() = default;
  // Throws Error naming `what` when the address space or the memory limit does not allow it.
  Buffer(int64_t bytes, const char* what);
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer();

  uint8_t* data() const { return data_; }
  template <typename T>
  T* as(int64_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(data_ + offset_bytes);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace thermocline
