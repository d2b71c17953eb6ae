#include <algorithm>

#include "gpu/cuda/activation.cuh"
#include "gpu/cuda/quantize.cuh"
#include "gpu/cuda/vector_ops.h"

namespace thermocline::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// The sum over a block, in every thread, in a fixed order. All threads must come.
__device__ float BlockSum(float v) {
  __shared__ float sums[kMaxThreads / 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  v = WarpSum(v);
  __syncthreads();
  if (lane == 0) sums[warp] = v;
  __syncthreads();
  return WarpSum(lane < n_warps ? sums[lane] : 0.f);
}

constexpr int kNormThreads = 256, kNormColumns = 512;

// A block sums up the whole row and writes kNormColumns of it, or all where args.out is args.x.
__global__ void __launch_bounds__(kNormThreads) NormKernel(const __grid_constant__ NormArgs args, int n_columns) {
  const int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Begin();
  const float* x = args.x.data + (args.gather ? args.gather[row] : row) * args.x.stride;
  float sum = 0, mean = 0;
#pragma unroll 8
  for (int i = threadIdx.x; i < args.n; i += kNormThreads) sum += args.bias ? x[i] : x[i] * x[i];
  sum = BlockSum(sum);
  if (args.bias) {
    mean = sum / args.n;
    float squares = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < args.n; i += kNormThreads) squares += (x[i] - mean) * (x[i] - mean);
    sum = BlockSum(squares);
  }
  const float factor = 1 / sqrtf(sum / args.n + args.eps);
  const int begin = blockIdx.x * n_columns;
  const int end = min(begin + n_columns, static_cast<int>((args.n + 255) / 256 * 256));
#pragma unroll 2
  for (int first = begin + 32 * warp; first < end; first += kNormThreads) {
    const int i = first + lane;
    float normed = 0;
    if (i < args.n) {
      normed = (x[i] - mean) * factor * args.weight[i];
      if (args.bias) normed += args.bias[i];
      float* out = args.out.data + row * args.out.stride + i;
      if (args.accumulate) normed += *out;
      *out = normed;
    }
    if (args.quantized) QuantizeGroup(normed, -1, row % kTileRows, lane, GroupOf(args.quantized, args.n, row, i / 32));
  }
}

__global__ void HeadNormKernel(Rows x, const float* weight, float eps, int head_dim) {
  Begin();
  float* head = x.data + blockIdx.y * x.stride + blockIdx.x * head_dim;
  float sum = 0;
  for (int i = threadIdx.x; i < head_dim; i += 32) sum += head[i] * head[i];
  const float factor = 1 / sqrtf(WarpSum(sum) / head_dim + eps);
  for (int i = threadIdx.x; i < head_dim; i += 32) head[i] = head[i] * factor * weight[i];
}

__global__ void RopeTableKernel(const int32_t* position, const double* frequency, int n_pairs, Rows out) {
  Begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n_pairs) return;
  double sine, cosine;
  sincos(position[blockIdx.y] * frequency[i], &sine, &cosine);
  float* at = out.data + blockIdx.y * out.stride + 2 * i;
  at[0] = static_cast<float>(cosine);
  at[1] = static_cast<float>(sine);
}

__global__ void RopeKernel(Rows x, ConstRows table, bool interleaved, int n_dims, int head_dim) {
  Begin();
  float* head = x.data + blockIdx.y * x.stride + blockIdx.x * head_dim;
  const float* cos_sin = table.data + blockIdx.y * table.stride;
  const int n_pairs = n_dims / 2;
  for (int i = threadIdx.x; i < n_pairs; i += blockDim.x) {
    float& a = interleaved ? head[2 * i] : head[i];
    float& b = interleaved ? head[2 * i + 1] : head[i + n_pairs];
    const float cosine = cos_sin[2 * i], sine = cos_sin[2 * i + 1], rotated = a * cosine - b * sine;
    b = a * sine + b * cosine;
    a = rotated;
  }
}

constexpr int kActWarps = 8;

// A warp per group of 32 columns.
__global__ void ActKernel(ConstRows gate, ConstRows up, Activation activation, int n, Rows out, Quantized quantized) {
  Begin();
  const int row = blockIdx.y, lane = threadIdx.x % 32, group = blockIdx.x * kActWarps + threadIdx.x / 32;
  const int i = 32 * group + lane;
  float v = 0;
  if (i < n) {
    v = Activate(gate.data[row * gate.stride + i], activation);
    if (up.data) v *= up.data[row * up.stride + i];
    out.data[row * out.stride + i] = v;
  }
  if (quantized && group < (n + 255) / 256 * 8)
    QuantizeGroup(v, -1, row % kTileRows, lane, GroupOf(quantized, n, row, group));
}

__global__ void AddKernel(ConstRows x, int n, Rows out) {
  Begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out.data[blockIdx.y * out.stride + i] += x.data[blockIdx.y * x.stride + i];
}

// A thread per neuron: nobody else writes its count.
__global__ void CountFiringsKernel(ConstRows gate, Activation activation, int n, const float* level,
                                   const uint8_t* prompt, uint32_t* counts, int n_rows) {
  Begin();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint32_t fired = 0;
  for (int row = 0; row < n_rows; ++row) {
    if (prompt[row]) continue;
    fired += !(fabsf(Activate(gate.data[row * gate.stride + i], activation)) <= *level);
  }
  counts[i] += fired;
}

// limits[row] = factor times the mean over the row's groups of the squared largest value, or -1 where all have a lo
// plane.
__global__ void LimitKernel(ConstRows x, int lead, int n, LargeGroups large) {
  Begin();
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32;
  const int n_groups = (n + 63) / 64 * 2;
  if (!large.rows[row]) {
    if (threadIdx.x == 0) large.limits[row] = -1;
    return;
  }
  float squares = 0;
  for (int group = warp; group < n_groups; group += n_warps) {
    const int i = 32 * group + lane;
    const float largest = WarpMax(i >= lead && i < n ? fabsf(Sanitize(x.data[row * x.stride + i])) : 0.f);
    if (lane == 0) squares += largest * largest;
  }
  const float sum = BlockSum(squares);
  if (threadIdx.x == 0) large.limits[row] = large.factor * (sum / n_groups);
}

__global__ void QuantizeKernel(ConstRows x, int lead, int n, int64_t k, const float* limits, Quantized out) {
  Begin();
  const int row = blockIdx.y, lane = threadIdx.x % 32, group = blockIdx.x * kActWarps + threadIdx.x / 32;
  const int i = 32 * group + lane;
  if (group >= (k + 255) / 256 * 8) return;
  QuantizeGroup(i >= lead && i < n ? x.data[row * x.stride + i] : 0.f, limits ? limits[row] : -1, row % kTileRows, lane,
                GroupOf(out, k, row, group));
}

}  // namespace

void LaunchNorm(const Queue& queue, const NormArgs& args, int n_rows) {
  const int columns = static_cast<int>(ActivationGroups(args.n)) * kGroup;
  const int per_block = args.out.data == args.x.data ? columns : kNormColumns;
  Launch(queue, NormKernel, dim3(CeilDiv(columns, per_block), n_rows), dim3(kNormThreads), 0, args, per_block);
}

void LaunchHeadNorm(const Queue& queue, Rows x, const float* weight, float eps, int n_heads, int head_dim, int n_rows) {
  Launch(queue, HeadNormKernel, dim3(n_heads, n_rows), dim3(32), 0, x, weight, eps, head_dim);
}

void LaunchRopeTable(const Queue& queue, const int32_t* position, const double* frequency, int n_pairs, Rows out,
                     int n_rows) {
  Launch(queue, RopeTableKernel, dim3(CeilDiv(n_pairs, 64), n_rows), dim3(64), 0, position, frequency, n_pairs, out);
}

void LaunchRope(const Queue& queue, Rows x, ConstRows table, RopeKind kind, int n_dims, int n_heads, int head_dim,
                int n_rows) {
  Launch(queue, RopeKernel, dim3(n_heads, n_rows), dim3(64), 0, x, table, kind == RopeKind::kInterleaved, n_dims,
         head_dim);
}

void LaunchAct(const Queue& queue, ConstRows gate, ConstRows up, Activation activation, int n, Rows out,
               Quantized quantized, int n_rows) {
  Launch(queue, ActKernel, dim3(CeilDiv(ActivationGroups(n), kActWarps), n_rows), dim3(32 * kActWarps), 0, gate, up,
         activation, n, out, quantized);
}

void LaunchAdd(const Queue& queue, ConstRows x, int n, Rows out, int n_rows) {
  Launch(queue, AddKernel, dim3(CeilDiv(n, 256), n_rows), dim3(256), 0, x, n, out);
}

void LaunchCountFirings(const Queue& queue, ConstRows gate, Activation activation, int n, const float* level,
                        const uint8_t* prompt, uint32_t* counts, int n_rows) {
  Launch(queue, CountFiringsKernel, dim3(CeilDiv(n, 128)), dim3(128), 0, gate, activation, n, level, prompt, counts,
         n_rows);
}

void LaunchQuantize(const Queue& queue, ConstRows x, int n, int64_t k, const LargeGroups& large, Quantized out,
                    int n_rows, int lead) {
  if (large.rows) Launch(queue, LimitKernel, dim3(n_rows), dim3(256), 0, x, lead, n, large);
  Launch(queue, QuantizeKernel, dim3(CeilDiv(ActivationGroups(k), kActWarps), n_rows), dim3(32 * kActWarps), 0, x, lead,
         n, k, large.rows ? large.limits : nullptr, out);
}

}  // namespace thermocline::cuda
