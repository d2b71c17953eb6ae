#include <algorithm>
#include <vector>

#include "gpu/cuda/linear.h"
#include "gpu/cuda/panel_dot.cuh"
#include "gpu/cuda/panel_tile.cuh"

namespace thermocline::cuda {
namespace {

// Which panel of which projection a warp works on.
struct PanelOf {
  __device__ PanelOf(const LinearArgs& args, int panel, int64_t panel_bytes) : index(panel) {
    int p = 0;
    for (; p + 1 < args.n_projections; ++p) {
      const int n_panels = (args.projections[p].n + kPanelRows - 1) / kPanelRows;
      if (index < n_panels) break;
      index -= n_panels;
    }
    to = &args.projections[p];
    data = to->panels + index * panel_bytes;
  }
  // y (+)= value + bias, of row `row` of the panel and row m of the activations.
  __device__ void Store(const LinearArgs& args, int row, int m, float value) const {
    const int n = index * kPanelRows + row;
    if (m >= args.m || n >= to->n) return;
    float& y = to->y[m * to->y_stride + n];
    if (to->bias) value += to->bias[n];
    y = args.accumulate ? y + value : value;
  }
  const Projection* to;
  int index;
  const uint8_t* data;
};

template <typename T>
__device__ int Units(int64_t k) {
  return static_cast<int>((k + T::kBlockK - 1) / T::kBlockK) * (T::kBlockK / kUnitK);
}

// A block has warps_k warps, to which the stages of one panel are dealt. Partial sums are added in the order of warps.
// Dynamic shared memory: kStages stages per warp.
template <typename T, int kRows, int kStages>
__global__ void __launch_bounds__(32 * kMaxWarps, 3) DecodeKernel(const __grid_constant__ LinearArgs args) {
  constexpr int kQuads = kRows > kQuadRows ? 2 : 1;
  constexpr int kValues = kQuads * kTileRows * kPanelRows;  // two planes of 4 rows each
  extern __shared__ __align__(16) uint8_t rings[];
  __shared__ float partial[kMaxWarps][kValues];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n_warps = blockDim.x / 32, n_units = Units<T>(args.k);
  const PanelOf panel(args, blockIdx.x, int64_t{n_units} * kUnitK / T::kBlockK * T::kBlockBytes);
  float sum[kQuads][4] = {};
  PanelDot<T, kRows, kStages>(
      panel.data, n_units, warp, n_warps, args.x, args.m, lane, rings + warp * (kStages * Stage<T, kRows>::kBytes),
      [] { Begin(); }, sum);
#pragma unroll
  for (int t = 0; t < kQuads; ++t)
    for (int j = 0; j < 4; ++j)
      partial[warp][(kTileRows * t + lane % 4 * 2 + j % 2) * kPanelRows + lane / 4 + j / 2 * 8] = sum[t][j];
  __syncthreads();
  for (int i = threadIdx.x; i < args.m * kPanelRows; i += blockDim.x) {
    const int m = i / kPanelRows, column = m / kQuadRows * kTileRows + m % kQuadRows;
    const int hi = column * kPanelRows + i % kPanelRows, lo = hi + kQuadRows * kPanelRows;
    float total = 0;
    for (int w = 0; w < n_warps; ++w) total += partial[w][hi] + partial[w][lo];
    panel.Store(args, i % kPanelRows, m, total * (1.f / T::kFactor));
  }
}

constexpr int kPromptWarps = 4;  // of a block, a panel each

// Prompts: kPromptTiles tiles of rows share a pass over the weights.
template <typename T>
__global__ void __launch_bounds__(32 * kPromptWarps, 3)
    PromptKernel(const __grid_constant__ LinearArgs args, int n_panels) {
  const int lane = threadIdx.x % 32, first_row = blockIdx.y * kPromptTiles * kTileRows;
  const int at = blockIdx.x * kPromptWarps + threadIdx.x / 32, n_units = Units<T>(args.k);
  Begin();
  if (at >= n_panels) return;
  const PanelOf panel(args, at, int64_t{n_units} * kUnitK / T::kBlockK * T::kBlockBytes);
  const int64_t tile_bytes = (args.k + 255) / 256 * (8 * kGroupBytes);
  const uint8_t* x = args.x + blockIdx.y * kPromptTiles * tile_bytes;
  float sum[kPromptTiles][4] = {};
  T next;
  next.template Load<FromMemory>(panel.data, 0, lane);
  for (int unit = 0; unit < n_units; ++unit) {
    const T now = next;
    if (unit + 1 < n_units) next.template Load<FromMemory>(panel.data, unit + 1, lane);
    MultiplyTiles(now, x + int64_t{unit} * (2 * kGroupBytes), tile_bytes, args.m - first_row, lane, sum);
  }
#pragma unroll
  for (int t = 0; t < kPromptTiles; ++t)
    for (int j = 0; j < 4; ++j)
      panel.Store(args, lane / 4 + j / 2 * 8, first_row + kTileRows * t + lane % 4 * 2 + j % 2,
                  sum[t][j] * (1.f / T::kFactor));
}

template <typename T>
__global__ void InterleaveKernel(uint8_t* blocks) {
  __shared__ uint32_t copy[T::kBlockBytes / 4];
  AwaitPrevious();  // and let nobody begin: products read weights before they wait
  uint8_t* block = blocks + int64_t{blockIdx.x} * T::kBlockBytes;
  for (int i = threadIdx.x; i < T::kBlockBytes / 4; i += 32) copy[i] = reinterpret_cast<const uint32_t*>(block)[i];
  __syncthreads();
  T::Interleave(reinterpret_cast<const uint8_t*>(copy), threadIdx.x, block);
}

constexpr int kMaxStages = 3;

// As many warps as keep the memory busy, and of them as few as possible per panel; for any number of rows the same.
template <typename T>
int WarpsPerPanel(const Queue& queue, int n_panels, int n_stages) {
  constexpr int kWarpsPerSm = 24;
  const int most =
      std::min<int>(kMaxWarps, (queue.shared_bytes - 16 * 1024) / (kMaxStages * Stage<T, kTileRows>::kBytes));
  int warps = 1;
  while (2 * warps <= most && 2 * warps <= n_stages && n_panels * warps < kWarpsPerSm * queue.n_sm) warps *= 2;
  return warps;
}

template <typename T, int kRows, int kStages>
void LaunchDecode(const Queue& queue, const LinearArgs& args, int n_panels, int warps) {
  const int bytes = warps * kStages * Stage<T, kRows>::kBytes;
  AllowShared(DecodeKernel<T, kRows, kStages>, bytes);
  Launch(queue, DecodeKernel<T, kRows, kStages>, dim3(n_panels), dim3(32 * warps), bytes, args);
}

// Few stages per warp: more blocks at a time pay more than copies further ahead.
template <typename T, int kRows>
void LaunchDecode(const Queue& queue, const LinearArgs& args, int n_panels) {
  const int n_stages = static_cast<int>(CeilDiv(args.k, 256));
  const int warps = args.warps_k ? args.warps_k : WarpsPerPanel<T>(queue, n_panels, n_stages);
  if (n_stages <= 2 * warps)
    LaunchDecode<T, kRows, 2>(queue, args, n_panels, warps);
  else
    LaunchDecode<T, kRows, kMaxStages>(queue, args, n_panels, warps);
}

}  // namespace

void LaunchLinear(const Queue& queue, DType type, const LinearArgs& args) {
  WithTile(type, [&](auto tile) {
    using T = decltype(tile);
    int n_panels = 0;
    for (int i = 0; i < args.n_projections; ++i)
      n_panels += static_cast<int>(CeilDiv(args.projections[i].n, kPanelRows));
    if (args.m > kTileRows) {
      const dim3 grid(static_cast<unsigned>(CeilDiv(n_panels, kPromptWarps)),
                      static_cast<unsigned>(CeilDiv(args.m, kPromptTiles * kTileRows)));
      return Launch(queue, PromptKernel<T>, grid, dim3(32 * kPromptWarps), 0, args, n_panels);
    }
    if (args.m == 1)
      LaunchDecode<T, 1>(queue, args, n_panels);
    else if (args.m <= kQuadRows)
      LaunchDecode<T, kQuadRows>(queue, args, n_panels);
    else
      LaunchDecode<T, kTileRows>(queue, args, n_panels);
  });
}

void LaunchInterleave(const Queue& queue, DType type, uint8_t* panels, int64_t n_panels, int64_t k) {
  WithTile(type, [&](auto tile) {
    using T = decltype(tile);
    const int64_t n_blocks = n_panels * CeilDiv(k, T::kBlockK);
    Launch(queue, InterleaveKernel<T>, dim3(static_cast<unsigned>(n_blocks)), dim3(32), 0, panels);
  });
}

void InterleaveOnHost(DType type, uint8_t* panels, int64_t n_panels, int64_t k) {
  WithTile(type, [&](auto tile) {
    using T = decltype(tile);
    std::vector<uint8_t> copy(T::kBlockBytes);
    for (int64_t i = 0; i < n_panels * CeilDiv(k, T::kBlockK); ++i) {
      uint8_t* block = panels + i * T::kBlockBytes;
      std::copy_n(block, T::kBlockBytes, copy.data());
      for (int lane = 0; lane < 32; ++lane) T::Interleave(copy.data(), lane, block);
    }
  });
}

}  // namespace thermocline::cuda
