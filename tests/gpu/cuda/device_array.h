// Arrays in the memory of a GPU, for tests; and whether there is one.
#pragma once

#include <cuda_runtime.h>
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "gpu/cuda/queue.h"

namespace thermocline::test {

// A test that needs a GPU begins with it.
inline bool HasGpu() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess && n > 0) return true;
  MESSAGE("SKIPPED: this machine has no NVIDIA GPU");
  return false;
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  // Of bytes that make no sense as floats, so that what nobody wrote is seen.
  explicit DeviceArray(size_t size) : size_(size) {
    cuda::CheckCuda(cudaMalloc(&data_, bytes()), "cudaMalloc");
    cuda::CheckCuda(cudaMemset(data_, 0xff, bytes()), "cudaMemset");
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  void Set(const std::vector<T>& values) {
    cuda::CheckCuda(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  std::vector<T> Get() const {  // when all kernels have ended
    cuda::CheckCuda(cudaDeviceSynchronize(), "a kernel");
    std::vector<T> values(size_);
    cuda::CheckCuda(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return values;
  }
  T* data() const { return data_; }

 private:
  size_t bytes() const { return (size_ > 0 ? size_ : 1) * sizeof(T); }
  T* data_ = nullptr;
  size_t size_;
};

inline std::vector<float> RandomFloats(size_t size, std::mt19937& rng, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(size);
  for (float& v : values) v = normal(rng);
  return values;
}

// |actual - expected|_2 / |expected|_2; infinite where a value is not finite.
inline double RelativeError(const std::vector<float>& actual, const std::vector<float>& expected) {
  REQUIRE(actual.size() == expected.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (!std::isfinite(actual[i])) return INFINITY;
    difference += (double{actual[i]} - expected[i]) * (double{actual[i]} - expected[i]);
    norm += double{expected[i]} * expected[i];
  }
  return norm == 0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

}  // namespace thermocline::test
