#include "gpu/cuda/queue.h"

#include <cuda_runtime.h>

#include "gpu/device.h"

namespace thermocline::cuda {

Queue MakeQueue(CUstream_st* stream) {
  int device = 0, n_sm = 0, shared = 0, major = 0;
  CheckCuda(cudaGetDevice(&device), "the GPU cannot be used");
  CheckCuda(cudaDeviceGetAttribute(&n_sm, cudaDevAttrMultiProcessorCount, device), "the GPU cannot be asked");
  CheckCuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
            "the GPU cannot be asked");
  CheckCuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "the GPU cannot be asked");
  return {stream, n_sm, shared, major >= 9};
}

void CheckCuda(int code, const char* what) {
  if (code == cudaSuccess) return;
  throw DeviceLost("{}: {}", what, cudaGetErrorString(static_cast<cudaError_t>(code)));
}

}  // namespace thermocline::cuda
