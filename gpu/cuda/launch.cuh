// What all kernels share: how they are launched, and how one begins before its predecessor has ended.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "gpu/cuda/queue.h"

namespace thermocline::cuda {

// Until here a kernel may only read what no other kernel writes: weights. Behind it, all that was launched before has
// ended (programmatic dependent launch, from sm_90 on; before it, kernels begin one after the other).
__device__ inline void AwaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may begin as soon as all blocks have come here.
__device__ inline void LetNextBegin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void Begin() {
  AwaitPrevious();
  LetNextBegin();
}

// Throws Error when the launch fails.
template <typename... Params, typename... Args>
void Launch(const Queue& queue, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = queue.overlaps ? 1 : 0;
  CheckLaunch(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

// Lets a kernel have that much dynamic shared memory, for which it must ask above 48 KiB with what it has besides.
template <typename Kernel>
void AllowShared(Kernel* kernel, int64_t bytes) {
  constexpr int64_t kUnasked = 32 * 1024;
  if (bytes > kUnasked)
    CheckLaunch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

// Sums and maxima over the lanes of a warp, in the same order in every lane.
__device__ inline float WarpSum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffff, v, offset);
  return v;
}
__device__ inline float WarpMax(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, offset));
  return v;
}
__device__ inline int WarpSum(int v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffff, v, offset);
  return v;
}

}  // namespace thermocline::cuda
