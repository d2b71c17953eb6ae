// Times kernels on a GPU against its copy bandwidth: products of a 7B model's shapes, rotating over matrices of 1 GB
// and more so that none stays in L2, in one recorded graph. Weights are synthetic: random bytes with sane scales.
//
//   kernels [--quick]     prints a table; what a GEMV reads are its weights
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "gpu/cuda/attention.h"
#include "gpu/cuda/linear.h"
#include "gpu/cuda/vector_ops.h"

namespace thermocline {
namespace {

using cuda::CheckCuda;

uint8_t* Allocate(int64_t bytes) {
  void* data = nullptr;
  CheckCuda(cudaMalloc(&data, bytes), "cudaMalloc");
  CheckCuda(cudaMemset(data, 0, bytes), "cudaMemset");
  return static_cast<uint8_t*>(data);
}

__global__ void FillKernel(uint32_t* words, int64_t n, uint32_t mask) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + 12345;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    words[i] = x & mask;
  }
}

// Bytes whose every pair is a half of magnitude under 2: no scale is infinite or NaN.
void Fill(uint8_t* data, int64_t bytes) {
  FillKernel<<<1024, 256>>>(reinterpret_cast<uint32_t*>(data), bytes / 4, 0xbfffbfff);
  CheckCuda(cudaGetLastError(), "fill");
}

// The median over `repeats` replays of what `enqueue` enqueues, in microseconds.
double TimeGraph(cudaStream_t stream, const std::function<void()>& enqueue, int repeats = 15) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  enqueue();
  CheckCuda(cudaStreamEndCapture(stream, &graph), "capture");
  CheckCuda(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  CheckCuda(cudaEventCreate(&begin), "event");
  CheckCuda(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    CheckCuda(cudaEventRecord(begin, stream), "record");
    CheckCuda(cudaGraphLaunch(exec, stream), "graph");
    CheckCuda(cudaEventRecord(end, stream), "record");
    CheckCuda(cudaEventSynchronize(end), "graph");
    float ms;
    CheckCuda(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (i >= 2) times.push_back(ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return 1e3 * times[times.size() / 2];
}

__global__ void CopyKernel(const uint4* from, uint4* to, int64_t n) {
  constexpr int kAtOnce = 8;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += kAtOnce * step) {
    uint4 v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (i + j * step < n) v[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (i + j * step < n) __stcs(to + i + j * step, v[j]);
  }
}

// Bytes per second, read and written, by the driver's copy or by a kernel, whichever is faster.
double CopyBandwidth(cudaStream_t stream) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  uint8_t *a = Allocate(kBytes), *b = Allocate(kBytes);
  Fill(a, kBytes);
  const double us =
      TimeGraph(stream, [&] { CheckCuda(cudaMemcpyAsync(b, a, kBytes, cudaMemcpyDeviceToDevice, stream), "copy"); });
  const double kernel_us = TimeGraph(stream, [&] {
    CopyKernel<<<8 * 132, 256, 0, stream>>>(reinterpret_cast<const uint4*>(a), reinterpret_cast<uint4*>(b),
                                            kBytes / 16);
  });
  cudaFree(a);
  cudaFree(b);
  std::printf("device-to-device copy: driver %.0f GB/s, kernel %.0f GB/s, reads plus writes\n", 2 * kBytes / us / 1e3,
              2 * kBytes / kernel_us / 1e3);
  return 2 * kBytes / std::min(us, kernel_us) * 1e6;
}

struct Shape {
  const char* name;
  int n, k;
};

void TimeLinear(const cuda::Queue& queue, double bandwidth, DType type, const Shape& shape, int m, int warps_k) {
  const int64_t bytes = PackedBytes(type, shape.n, shape.k);
  const int count = static_cast<int>(cuda::CeilDiv(int64_t{5} << 28, bytes));  // 1.25 GiB of matrices
  uint8_t* weights = Allocate(bytes * count);
  Fill(weights, bytes * count);
  uint8_t* x = Allocate(cuda::ActivationBytes(m, shape.k));
  float* in = reinterpret_cast<float*>(Allocate(int64_t{m} * shape.k * 4));
  float* y = reinterpret_cast<float*>(Allocate(int64_t{m} * shape.n * 4));
  Fill(reinterpret_cast<uint8_t*>(in), int64_t{m} * shape.k * 4);
  cuda::LaunchQuantize(queue, {in, shape.k}, shape.k, shape.k, {}, x, m);
  CheckCuda(cudaDeviceSynchronize(), "quantize");
  const double us = TimeGraph(queue.stream,
                              [&] {
                                for (int i = 0; i < count; ++i) {
                                  cuda::LinearArgs args{x, m, shape.k, 1, {}, false, warps_k};
                                  args.projections[0] = {weights + i * bytes, shape.n, y, shape.n};
                                  cuda::LaunchLinear(queue, type, args);
                                }
                              }) /
                    count;
  if (m <= cuda::kTileRows)
    std::printf("%-7s %-18s M=%-4d cut %d %9.2f us %8.1f GB/s %6.1f %% of copy\n", Info(type).name, shape.name, m,
                warps_k, us, bytes / us / 1e3, 1e8 * bytes / us / bandwidth);
  else
    std::printf("%-7s %-18s M=%-4d       %9.2f us %8.1f TFLOP/s\n", Info(type).name, shape.name, m, us,
                2e-6 * m * shape.n * shape.k / us);
  std::fflush(stdout);
  for (void* p : {static_cast<void*>(weights), static_cast<void*>(x), static_cast<void*>(in), static_cast<void*>(y)})
    cudaFree(p);
}

void TimeSmall(const cuda::Queue& queue) {
  constexpr int kCount = 64, kEmbd = 4096, kFf = 11008, kHeads = 32, kHeadDim = 128, kTokens = 1024;
  float* x = reinterpret_cast<float*>(Allocate(64 * kFf * 4));
  uint8_t* activations = Allocate(cuda::ActivationBytes(8, kFf));
  const auto report = [&](const char* name, const std::function<void()>& one) {
    const double us = TimeGraph(queue.stream,
                                [&] {
                                  for (int i = 0; i < kCount; ++i) one();
                                }) /
                      kCount;
    std::printf("%-40s %9.2f us\n", name, us);
  };
  cuda::NormArgs norm;
  norm.x = {x, kEmbd};
  norm.weight = x + kEmbd;
  norm.eps = 1e-5f;
  norm.n = kEmbd;
  norm.out = {x + 2 * kEmbd, kEmbd};
  norm.quantized = activations;
  report("norm 4096, rounded", [&] { cuda::LaunchNorm(queue, norm, 1); });
  report("quantize 4096", [&] { cuda::LaunchQuantize(queue, {x, kEmbd}, kEmbd, kEmbd, {}, activations, 1); });
  report("gated activation 11008, rounded", [&] {
    cuda::LaunchAct(queue, {x, kFf}, {x + kFf, kFf}, Activation::kSilu, kFf, {x, kFf}, activations, 1);
  });
  report("rope 32 heads", [&] {
    cuda::LaunchRope(queue, {x, kEmbd}, {x + kEmbd, kHeadDim}, RopeKind::kHalves, kHeadDim, kHeads, kHeadDim, 1);
  });
  const int64_t page_bytes = kHeads * KvHeadBytes({}, kHeadDim);
  uint8_t* pages = Allocate(kTokens / kPageTokens * page_bytes);
  std::vector<uint64_t> table;
  for (int i = 0; i < kTokens / kPageTokens; ++i) table.push_back(reinterpret_cast<uint64_t>(pages) + i * page_bytes);
  const cuda::RowBlock block{0, 1, kTokens - 1, 0};
  uint8_t* step_data = Allocate(4096);
  const int32_t position = kTokens - 1;
  CheckCuda(cudaMemcpy(step_data, &position, 4, cudaMemcpyHostToDevice), "copy");
  CheckCuda(cudaMemcpy(step_data + 512, &block, sizeof block, cudaMemcpyHostToDevice), "copy");
  CheckCuda(cudaMemcpy(step_data + 1024, table.data(), table.size() * 8, cudaMemcpyHostToDevice), "copy");
  const cuda::StepTables step{reinterpret_cast<int32_t*>(step_data),
                              reinterpret_cast<int32_t*>(step_data + 256),
                              reinterpret_cast<cuda::RowBlock*>(step_data + 512),
                              1,
                              1,
                              {reinterpret_cast<uint64_t*>(step_data + 1024)},
                              kTokens / kPageTokens};
  const cuda::KvPlace kv{0, 0, kHeads, kHeadDim};
  report("KV store", [&] { cuda::LaunchStoreKv(queue, step, kv, {x, kEmbd}, {x + kEmbd, kEmbd}); });
  float* scratch =
      reinterpret_cast<float*>(Allocate(4 * cuda::AttentionScratch(kHeads, kHeadDim, kTokens / kPageTokens)));
  report("attention over 1024 tokens, 32 heads", [&] {
    cuda::LaunchAttention(queue, step, kv, {{x, kEmbd}, {x + kEmbd, kEmbd}, kHeads, 0, 0.1f, false}, scratch);
  });
}

int Main(bool quick) {
  cudaDeviceProp properties;
  CheckCuda(cudaGetDeviceProperties(&properties, 0), "no GPU");
  cudaStream_t stream;
  CheckCuda(cudaStreamCreate(&stream), "stream");
  const cuda::Queue queue = cuda::MakeQueue(stream);
  const double bandwidth = CopyBandwidth(stream);
  std::printf("%s, %d multiprocessors; copy %.0f GB/s\n", properties.name, queue.n_sm, bandwidth / 1e9);
  const Shape gate{"gate 11008 x 4096", 11008, 4096}, down{"down 4096 x 11008", 4096, 11008};
  const Shape out{"out 4096 x 4096", 4096, 4096}, head{"head 32000 x 4096", 32000, 4096};
  const Shape both{"gate+up 22016", 22016, 4096}, qkv{"qkv 12288 x 4096", 12288, 4096};
  std::printf("warming up:\n");
  TimeLinear(queue, bandwidth, DType::kQ4_0, gate, 1, 0);
  std::printf("cut: warps that share a panel; 0: as the program chooses\n");
  for (const Shape& shape : {gate, down})
    for (const int cut : {0, 2, 4, 8}) TimeLinear(queue, bandwidth, DType::kQ4_0, shape, 1, cut);
  for (const Shape& shape : {both, qkv, out, head}) TimeLinear(queue, bandwidth, DType::kQ4_0, shape, 1, 0);
  for (const int m : {2, 4, 8}) TimeLinear(queue, bandwidth, DType::kQ4_0, gate, m, 0);
  for (const DType type : {DType::kQ4_1, DType::kQ5_0, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K})
    for (const int m : {1, 8}) TimeLinear(queue, bandwidth, type, gate, m, 0);
  TimeSmall(queue);
  if (quick) return 0;
  for (const int m : {64, 512, 2048})
    for (const DType type : {DType::kQ4_0, DType::kQ6_K}) TimeLinear(queue, bandwidth, type, gate, m, 0);
  return 0;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) { return thermocline::Main(argc > 1 && std::strcmp(argv[1], "--quick") == 0); }
