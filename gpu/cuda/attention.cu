#include <cuda_fp16.h>

#include <algorithm>

#include "gpu/cuda/attention.h"
#include "gpu/cuda/launch.cuh"

namespace thermocline::cuda {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;  // a page each at a time
constexpr int kStepTokens = kWarps * kPageTokens;
constexpr int kMaxPagedHeadDim = 256;

__device__ int64_t SideBytes(int head_dim) { return 2 * kPageTokens * head_dim; }

// The page of `token` and in it the keys of KV head `head`; its values follow.
__device__ uint8_t* HeadOfPage(const StepTables& step, const KvPlace& kv, int span, int token, int head) {
  const uint64_t page = step.pages[kv.kind][int64_t{span} * step.max_pages + token / kPageTokens];
  return reinterpret_cast<uint8_t*>(page) + kv.offset_bytes + head * 2 * SideBytes(kv.head_dim);
}

__device__ __half Stored(float x) { return __float2half_rn(x == x ? fminf(fmaxf(x, -65504.f), 65504.f) : x); }

__global__ void StoreKvKernel(const __grid_constant__ StepTables step, const __grid_constant__ KvPlace kv,
                              ConstRows key, ConstRows value) {
  Begin();
  const int head = blockIdx.x, row = blockIdx.y, token = step.position[row];
  if (token < kv.first_token || token >= kv.end_token) return;
  uint8_t* page = HeadOfPage(step, kv, step.span_of_row[row], token, head);
  __half* keys = reinterpret_cast<__half*>(page);
  __half* values = reinterpret_cast<__half*>(page + SideBytes(kv.head_dim));
  const int slot = token % kPageTokens;
  for (int d = threadIdx.x; d < kv.head_dim; d += blockDim.x) {
    keys[d * kPageTokens + slot] = Stored(key.data[row * key.stride + head * kv.head_dim + d]);
    values[slot * kv.head_dim + d] = Stored(value.data[row * value.stride + head * kv.head_dim + d]);
  }
}

// Dimension d of one head of one row: acc / sum, or the state.
__device__ void Finish(const AttentionArgs& args, int head_dim, int row, int head, int d, float max, float sum,
                       float acc) {
  float* out = args.out.data + row * args.out.stride;
  if (!args.state) {
    out[head * head_dim + d] = acc / sum;
    return;
  }
  if (d == 0) {
    out[head] = max;
    out[args.n_head + head] = sum;
  }
  out[2 * args.n_head + head * head_dim + d] = acc;
}

// A block has the queries of one KV head of one RowBlock. A warp scores one page (lanes are token pairs), then threads
// are dims of the values.
//
// Dynamic shared memory: q (kQueries, head_dim), probabilities (kQueries, kStepTokens).
template <int kQueries, int kDims>
__global__ void __launch_bounds__(kThreads)
    AttentionKernel(const __grid_constant__ StepTables step, const __grid_constant__ KvPlace kv,
                    const __grid_constant__ AttentionArgs args) {
  extern __shared__ float shared[];
  __shared__ float block_max[kQueries], block_sum[kQueries], rescale[kQueries];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = kv.head_dim;
  const int kv_head = blockIdx.x;
  const int group = args.n_head / kv.n_head_kv;
  const int query_blocks = (group + kQueries - 1) / kQueries;
  Begin();
  const RowBlock block = step.blocks[blockIdx.y / query_blocks];
  const int first_query = blockIdx.y % query_blocks * kQueries;  // within the group; 0 unless it is a large one
  const int per_row = min(group - first_query, kQueries);
  const int n_queries = block.n_rows * per_row;
  const auto row_of = [&](int q) { return block.first_row + q / per_row; };
  const auto head_of = [&](int q) { return kv_head * group + first_query + q % per_row; };

  float* q_shared = shared;
  float* p_shared = shared + kQueries * head_dim;
  for (int i = threadIdx.x; i < kQueries * head_dim; i += kThreads) {
    const int q = i / head_dim;
    q_shared[i] =
        q < n_queries ? args.scale * args.q.data[row_of(q) * args.q.stride + head_of(q) * head_dim + i % head_dim] : 0;
  }
  if (threadIdx.x < kQueries) {
    block_max[threadIdx.x] = -INFINITY;
    block_sum[threadIdx.x] = 0;
  }
  float acc[kQueries][kDims] = {};
  __syncthreads();

  const int last_position = block.first_position + block.n_rows - 1;
  int begin = args.window ? max(0, block.first_position - args.window + 1) : 0;
  int end = min(last_position + 1, kv.end_token);
  begin = max(begin, kv.first_token) / kPageTokens * kPageTokens;
  for (int first = begin; first < end; first += kStepTokens) {
    // Scores of the warp's page.
    const int page_token = first + warp * kPageTokens;
    const bool any = page_token < end;
    const __half2* keys =
        any ? reinterpret_cast<const __half2*>(HeadOfPage(step, kv, block.span, page_token, kv_head)) : nullptr;
    constexpr int kAtOnce = kQueries < 8 ? kQueries : 8;
    for (int q0 = 0; q0 < n_queries; q0 += kAtOnce) {
      float score[kAtOnce][2] = {};
      if (any) {
#pragma unroll 8
        for (int d = 0; d < head_dim; ++d) {
          const float2 k = __half22float2(keys[d * (kPageTokens / 2) + lane]);
#pragma unroll
          for (int q = 0; q < kAtOnce; ++q) {
            const float x = q_shared[(q0 + q) * head_dim + d];
            score[q][0] += x * k.x;
            score[q][1] += x * k.y;
          }
        }
      }
#pragma unroll
      for (int q = 0; q < kAtOnce; ++q) {
        const int position = block.first_position + (q0 + q) / per_row;
        for (int j = 0; j < 2; ++j) {
          const int token = page_token + 2 * lane + j;
          const bool seen = token < end && token <= position && (args.window == 0 || token > position - args.window);
          p_shared[(q0 + q) * kStepTokens + warp * kPageTokens + 2 * lane + j] = seen ? score[q][j] : -INFINITY;
        }
      }
    }
    __syncthreads();
    for (int q = warp; q < n_queries; q += kWarps) {
      float* p = p_shared + q * kStepTokens;
      float largest = block_max[q];
      for (int t = lane; t < kStepTokens; t += 32) largest = fmaxf(largest, p[t]);
      largest = WarpMax(largest);
      float sum = 0;
      for (int t = lane; t < kStepTokens; t += 32) {
        p[t] = p[t] == -INFINITY ? 0 : expf(p[t] - largest);
        sum += p[t];
      }
      sum = WarpSum(sum);
      if (lane == 0) {
        rescale[q] = block_max[q] == -INFINITY ? 0 : expf(block_max[q] - largest);
        block_sum[q] = block_sum[q] * rescale[q] + sum;
        block_max[q] = largest;
      }
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kQueries; ++q)
      for (int j = 0; j < kDims; ++j) acc[q][j] *= q < n_queries ? rescale[q] : 0;
    for (int page = 0; page < kWarps && first + page * kPageTokens < end; ++page) {
      const int token = first + page * kPageTokens, n_tokens = min(kPageTokens, end - token);
      const __half* values =
          reinterpret_cast<const __half*>(HeadOfPage(step, kv, block.span, token, kv_head) + SideBytes(head_dim));
#pragma unroll
      for (int j = 0; j < kDims; ++j) {
        const int d = threadIdx.x + j * kThreads;
        if (d >= head_dim) break;
#pragma unroll 8
        for (int t = 0; t < n_tokens; ++t) {
          const float v = __half2float(values[t * head_dim + d]);
#pragma unroll
          for (int q = 0; q < kQueries; ++q) acc[q][j] += p_shared[q * kStepTokens + page * kPageTokens + t] * v;
        }
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int q = 0; q < kQueries; ++q) {
    if (q >= n_queries) break;
    for (int j = 0; j < kDims; ++j) {
      const int d = threadIdx.x + j * kThreads;
      if (d >= head_dim) break;
      Finish(args, head_dim, row_of(q), head_of(q), d, block_max[q], block_sum[q], acc[q][j]);
    }
  }
}

// Where the partial results of a row over a page stand in the scratch: n_head x {max, sum, acc}.
__device__ float* PartialOf(float* scratch, const StepTables& step, int row, int page, int head, int n_head,
                            int head_dim) {
  return scratch + ((int64_t{row} * step.max_pages + page) * n_head + head) * (head_dim + 2);
}

// The pages that hold tokens which a row sees.
struct PageRange {
  __device__ PageRange(const KvPlace& kv, int window, int position)
      : first_token(max(kv.first_token, window ? position - window + 1 : 0)),
        end_token(min(position + 1, kv.end_token)),
        begin(first_token / kPageTokens),
        end((end_token + kPageTokens - 1) / kPageTokens) {}
  const int first_token, end_token, begin, end;
};

// p times 8 halves, added to acc.
__device__ void AddHalves(float p, const uint4& halves, float (&acc)[8]) {
  const __half2* pairs = reinterpret_cast<const __half2*>(&halves);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(pairs[i]);
    acc[2 * i] += p * pair.x;
    acc[2 * i + 1] += p * pair.y;
  }
}

template <int kVectors>
__device__ void AttendPage(const StepTables& step, const KvPlace& kv, const AttentionArgs& args, float* scratch,
                           const float* q_shared, const PageRange& pages, int page_index) {
  __shared__ float scores[kWarps][kPageTokens], p_shared[kPageTokens], parts[8 * kThreads];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, head_dim = kv.head_dim, octets = head_dim / 8;
  const int kv_head = blockIdx.x, row = blockIdx.z, first = page_index * kPageTokens;
  const int group = args.n_head / kv.n_head_kv;
  const int begin = max(pages.first_token, first), end = min(pages.end_token, first + kPageTokens);
  const auto partial_of = [&](int query) {
    return PartialOf(scratch, step, row, page_index, kv_head * group + query, args.n_head, head_dim);
  };
  const uint8_t* page = HeadOfPage(step, kv, step.span_of_row[row], first, kv_head);
  uint4 keys[kVectors], values[kVectors];
  const int dim_lane = threadIdx.x / 8, tokens_at_once = kThreads / octets;
  const int token_lane = threadIdx.x / octets, octet = threadIdx.x % octets;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int d = dim_lane + j * (kThreads / 8);
    if (d < head_dim) keys[j] = *reinterpret_cast<const uint4*>(page + 2 * kPageTokens * d + threadIdx.x % 8 * 16);
  }
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const int t = token_lane + j * tokens_at_once;
    values[j] = token_lane < tokens_at_once && first + t >= begin && first + t < end
                    ? *reinterpret_cast<const uint4*>(page + SideBytes(head_dim) + 16 * (t * octets + octet))
                    : uint4{};
  }
  __syncthreads();  // q is there; nobody reads what the page before left in shared memory

  for (int query = 0; query < group; ++query) {
    float score[8] = {};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int d = dim_lane + j * (kThreads / 8);
      if (d < head_dim) AddHalves(q_shared[query * head_dim + d], keys[j], score);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      score[i] += __shfl_xor_sync(0xffffffff, score[i], 8);
      score[i] += __shfl_xor_sync(0xffffffff, score[i], 16);
      if (lane < 8) scores[warp][8 * lane + i] = score[i];
    }
    __syncthreads();
    if (warp == 0) {
      float s[2], sum = 0;
      for (int i = 0; i < 2; ++i) {
        const int t = lane + 32 * i;
        s[i] = first + t >= begin && first + t < end ? scores[0][t] + scores[1][t] + scores[2][t] + scores[3][t]
                                                     : -INFINITY;
      }
      const float largest = WarpMax(fmaxf(s[0], s[1]));
      for (int i = 0; i < 2; ++i) {
        const float p = expf(s[i] - largest);
        p_shared[lane + 32 * i] = p;
        sum += p;
      }
      sum = WarpSum(sum);
      if (lane == 0) {
        partial_of(query)[0] = largest;
        partial_of(query)[1] = sum;
      }
    }
    __syncthreads();
    float acc[8] = {};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int t = token_lane + j * tokens_at_once;
      if (t < kPageTokens) AddHalves(p_shared[t], values[j], acc);
    }
    if (token_lane < tokens_at_once)
      for (int i = 0; i < 8; ++i) parts[token_lane * head_dim + 8 * octet + i] = acc[i];
    __syncthreads();
    for (int d = threadIdx.x; d < head_dim; d += kThreads) {
      float total = 0;
      for (int i = 0; i < tokens_at_once; ++i) total += parts[i * head_dim + d];
      partial_of(query)[2 + d] = total;
    }
  }
}

// Decode: one KV head and one row, and every gridDim.y-th of the pages it sees. All of a page's keys and values are on
// their way before the first is used: a thread has 8 tokens of kVectors dims of the keys, and 8 dims of as many tokens
// of the values.
template <int kVectors>
__global__ void __launch_bounds__(kThreads, kVectors <= 8 ? 4 : 2)
    PageKernel(const __grid_constant__ StepTables step, const __grid_constant__ KvPlace kv,
               const __grid_constant__ AttentionArgs args, float* scratch) {
  extern __shared__ float q_shared[];  // (group, head_dim)
  const int row = blockIdx.z, group = args.n_head / kv.n_head_kv;
  const PageRange pages(kv, args.window, step.position[row]);
  Begin();
  if (pages.begin + static_cast<int>(blockIdx.y) >= pages.end) return;
  const float* q = args.q.data + row * args.q.stride + blockIdx.x * group * kv.head_dim;
  for (int i = threadIdx.x; i < group * kv.head_dim; i += kThreads) q_shared[i] = args.scale * q[i];
  for (int page = pages.begin + blockIdx.y; page < pages.end; page += gridDim.y)
    AttendPage<kVectors>(step, kv, args, scratch, q_shared, pages, page);
}

// (max, sum, acc) = merge of itself and another; a maximum of -inf has nothing.
__device__ void MergeInto(float& max, float& sum, float& acc, float max2, float sum2, float acc2) {
  if (max2 == -INFINITY) return;
  const float largest = fmaxf(max, max2);
  const float a = max == -INFINITY ? 0 : expf(max - largest), b = expf(max2 - largest);
  sum = sum * a + sum2 * b;
  acc = acc * a + acc2 * b;
  max = largest;
}

// A block per head and row.
__global__ void __launch_bounds__(kThreads)
    MergePagesKernel(const __grid_constant__ StepTables step, const __grid_constant__ KvPlace kv,
                     const __grid_constant__ AttentionArgs args, float* scratch) {
  constexpr int kDims = kMaxPagedHeadDim / kThreads;
  __shared__ float maxima[kWarps], weights[kThreads], sums[kThreads];
  const int head = blockIdx.x, row = blockIdx.y, head_dim = kv.head_dim;
  const PageRange pages(kv, args.window, step.position[row]);
  const auto partial = [&](int page) { return PartialOf(scratch, step, row, page, head, args.n_head, head_dim); };
  Begin();
  float max = -INFINITY;
  for (int page = pages.begin + threadIdx.x; page < pages.end; page += kThreads) max = fmaxf(max, partial(page)[0]);
  max = WarpMax(max);
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = max;
  __syncthreads();
  for (const float m : maxima) max = fmaxf(max, m);

  float sum = 0, acc[kDims] = {};
  for (int first = pages.begin; first < pages.end; first += kThreads) {
    const int count = min(kThreads, pages.end - first);
    __syncthreads();
    if (threadIdx.x < count) {
      const float* at = partial(first + threadIdx.x);
      weights[threadIdx.x] = expf(at[0] - max);
      sums[threadIdx.x] = at[1];
    }
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < count; ++i) {
      sum += weights[i] * sums[i];
#pragma unroll
      for (int j = 0; j < kDims; ++j) {
        const int d = threadIdx.x + j * kThreads;
        if (d < head_dim) acc[j] += weights[i] * partial(first + i)[2 + d];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kDims; ++j) {
    const int d = threadIdx.x + j * kThreads;
    if (d < head_dim) Finish(args, head_dim, row, head, d, max, sum, acc[j]);
  }
}

__global__ void MergeStatesKernel(ConstRows a, ConstRows b, int n_head, int head_dim, Rows out) {
  Begin();
  const int head = blockIdx.x, row = blockIdx.y;
  const float *x = a.data + row * a.stride, *y = b.data + row * b.stride;
  for (int d = threadIdx.x; d < head_dim; d += blockDim.x) {
    const int at = 2 * n_head + head * head_dim + d;
    float max = x[head], sum = x[n_head + head], acc = x[at];
    MergeInto(max, sum, acc, y[head], y[n_head + head], y[at]);
    out.data[row * out.stride + head * head_dim + d] = acc / sum;
  }
}

}  // namespace

void LaunchStoreKv(const Queue& queue, const StepTables& step, const KvPlace& kv, ConstRows key, ConstRows value) {
  Launch(queue, StoreKvKernel, dim3(kv.n_head_kv, step.n_rows), dim3(std::min(128, kv.head_dim)), 0, step, kv, key,
         value);
}

int64_t AttentionScratch(int n_head, int head_dim, int max_pages) {
  return int64_t{kDecodeRows} * max_pages * n_head * (head_dim + 2);
}

namespace {

template <int kQueries>
void LaunchBlocks(const Queue& queue, const StepTables& step, const KvPlace& kv, const AttentionArgs& args) {
  const int64_t query_blocks = CeilDiv(args.n_head / kv.n_head_kv, kQueries);
  const dim3 grid(kv.n_head_kv, static_cast<unsigned>(step.n_blocks * query_blocks));
  const size_t bytes = static_cast<size_t>(kQueries) * (kv.head_dim + kStepTokens) * sizeof(float);
  const auto launch = [&](auto kernel) {
    AllowShared(kernel, static_cast<int64_t>(bytes));
    Launch(queue, kernel, grid, dim3(kThreads), bytes, step, kv, args);
  };
  if (kv.head_dim <= kThreads)
    launch(AttentionKernel<kQueries, 1>);
  else if (kv.head_dim <= 2 * kThreads)
    launch(AttentionKernel<kQueries, 2>);
  else
    launch(AttentionKernel<kQueries, kMaxAttentionHeadDim / kThreads>);
}

void LaunchPages(const Queue& queue, const StepTables& step, const KvPlace& kv, const AttentionArgs& args,
                 float* scratch) {
  constexpr int kBlocksPerSm = 4;
  const auto at_once = static_cast<int>(CeilDiv(kBlocksPerSm * queue.n_sm, int64_t{kv.n_head_kv} * step.n_rows));
  const dim3 grid(kv.n_head_kv, std::min(step.max_pages, at_once), step.n_rows);
  const size_t bytes = static_cast<size_t>(args.n_head / kv.n_head_kv) * kv.head_dim * sizeof(float);
  const auto launch = [&](auto kernel) {
    AllowShared(kernel, static_cast<int64_t>(bytes));
    Launch(queue, kernel, grid, dim3(kThreads), bytes, step, kv, args, scratch);
  };
  if (kv.head_dim <= 64)
    launch(PageKernel<4>);
  else if (kv.head_dim <= 128)
    launch(PageKernel<8>);
  else
    launch(PageKernel<16>);
  Launch(queue, MergePagesKernel, dim3(args.n_head, step.n_rows), dim3(kThreads), 0, step, kv, args, scratch);
}

}  // namespace

void LaunchAttention(const Queue& queue, const StepTables& step, const KvPlace& kv, const AttentionArgs& args,
                     float* scratch) {
  if (step.n_rows <= kDecodeRows && kv.head_dim % 8 == 0 && kv.head_dim <= kMaxPagedHeadDim)
    LaunchPages(queue, step, kv, args, scratch);
  else if (kv.n_head_kv == args.n_head && step.n_blocks == step.n_rows)
    LaunchBlocks<1>(queue, step, kv, args);
  else
    LaunchBlocks<kBlockQueries>(queue, step, kv, args);
}

void LaunchMergeStates(const Queue& queue, ConstRows a, ConstRows b, int n_head, int head_dim, Rows out, int n_rows) {
  Launch(queue, MergeStatesKernel, dim3(n_head, n_rows), dim3(std::min(128, head_dim)), 0, a, b, n_head, head_dim, out);
}

}  // namespace thermocline::cuda
