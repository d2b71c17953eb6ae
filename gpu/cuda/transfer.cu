#include <algorithm>

#include "gpu/cuda/launch.cuh"
#include "gpu/cuda/transfer.h"

namespace thermocline::cuda {
namespace {

// Enough to keep 64 KB on the way from the host at once, as a link of 50 GB/s wants it.
constexpr int kThreads = 256, kMaxBlocks = 64;

__device__ void Await(const Flag& flag) {
  while (*flag.up != *flag.step) {
  }
}

__global__ void ReceiveKernel(ConstRows host, int n, Rows out, int64_t n_values, Flag flag) {
  Begin();
  if (threadIdx.x == 0) Await(flag);
  __syncthreads();
  __threadfence_system();
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < n_values; i += int64_t{gridDim.x} * kThreads)
    out.data[i / n * out.stride + i % n] = __ldcv(host.data + i / n * host.stride + i % n);
}

__global__ void SendKernel(ConstRows in, int n, Rows host, int64_t n_values, Flag flag, uint32_t* counter) {
  Begin();
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < n_values; i += int64_t{gridDim.x} * kThreads)
    host.data[i / n * host.stride + i % n] = in.data[i / n * in.stride + i % n];
  __threadfence_system();
  __syncthreads();
  // The last block to come raises the flag; atomicInc wraps around to 0 then.
  if (threadIdx.x == 0 && atomicInc(counter, gridDim.x - 1) == gridDim.x - 1) {
    __threadfence_system();
    *flag.up = *flag.step;
  }
}

__global__ void RaiseKernel(Flag flag) {
  Begin();
  __threadfence_system();
  *flag.up = *flag.step;
}

__global__ void AwaitKernel(Flag flag) {
  Begin();
  Await(flag);
  __threadfence_system();
}

unsigned Blocks(int64_t n_values) {
  return static_cast<unsigned>(std::clamp<int64_t>(CeilDiv(n_values, 4 * kThreads), 1, kMaxBlocks));
}

}  // namespace

void LaunchReceive(const Queue& queue, ConstRows host, int n, Rows out, int n_rows, const Flag& flag) {
  const int64_t n_values = int64_t{n} * n_rows;
  Launch(queue, ReceiveKernel, dim3(Blocks(n_values)), dim3(kThreads), 0, host, n, out, n_values, flag);
}

void LaunchSend(const Queue& queue, ConstRows in, int n, Rows host, int n_rows, const Flag& flag, uint32_t* counter) {
  const int64_t n_values = int64_t{n} * n_rows;
  Launch(queue, SendKernel, dim3(Blocks(n_values)), dim3(kThreads), 0, in, n, host, n_values, flag, counter);
}

void LaunchRaise(const Queue& queue, const Flag& flag) { Launch(queue, RaiseKernel, dim3(1), dim3(1), 0, flag); }
void LaunchAwait(const Queue& queue, const Flag& flag) { Launch(queue, AwaitKernel, dim3(1), dim3(1), 0, flag); }

}  // namespace thermocline::cuda
