// Buffers between inaccessible pages: a kernel that reads or writes one byte too far dies on the spot.
#pragma once

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace thermocline::test {

enum class Flush {
  kEnd,    // the last element ends where the page behind begins (as near as the alignment lets it)
  kStart,  // the first element lies right behind the page in front
};

// n elements of T at a multiple of `alignment` bytes, every byte 0xFF at first (NaN as a float, -1 as an integer), so
// that what nobody wrote shows in results. Bytes between the data and the guard page must stay untouched: checked by
// Intact() and on destruction.
template <typename T>
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t n, size_t alignment = alignof(T), Flush flush = Flush::kEnd) : n_(n) {
    page_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    REQUIRE(alignment % alignof(T) == 0);
    REQUIRE(page_ % alignment == 0);
    const size_t bytes = n * sizeof(T);
    inner_bytes_ = (bytes + page_ - 1) / page_ * page_ + (bytes == 0 ? page_ : 0);
    void* map = mmap(nullptr, inner_bytes_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(map != MAP_FAILED);
    map_ = static_cast<uint8_t*>(map);
    REQUIRE(mprotect(inner(), inner_bytes_, PROT_READ | PROT_WRITE) == 0);
    std::memset(inner(), kFill, inner_bytes_);
    const size_t offset = flush == Flush::kStart ? 0 : (inner_bytes_ - bytes) / alignment * alignment;
    data_ = reinterpret_cast<T*>(inner() + offset);
  }
  GuardedBuffer(const std::vector<T>& values, size_t alignment = alignof(T), Flush flush = Flush::kEnd)
      : GuardedBuffer(values.size(), alignment, flush) {
    if (!values.empty()) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  ~GuardedBuffer() {
    CHECK(Intact());
    munmap(map_, inner_bytes_ + 2 * page_);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return n_; }
  T* begin() { return data_; }
  T* end() { return data_ + n_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + n_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> ToVector() const { return {begin(), end()}; }

  // Reading it is still allowed, writing faults: for inputs.
  void Protect() { REQUIRE(mprotect(inner(), inner_bytes_, PROT_READ) == 0); }

  // The accessible bytes in front of and behind the data are as they were.
  bool Intact() const {
    const auto* first = reinterpret_cast<const uint8_t*>(data_);
    const auto* last = reinterpret_cast<const uint8_t*>(data_ + n_);
    for (const uint8_t* p = inner(); p < first; ++p)
      if (*p != kFill) return false;
    for (const uint8_t* p = last; p < inner() + inner_bytes_; ++p)
      if (*p != kFill) return false;
    return true;
  }

 private:
  static constexpr uint8_t kFill = 0xFF;
  uint8_t* inner() const { return map_ + page_; }

  size_t n_, page_, inner_bytes_;
  uint8_t* map_;
  T* data_;
};

}  // namespace thermocline::test
