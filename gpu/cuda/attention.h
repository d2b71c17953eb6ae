// Attention over pages of F16 keys and values, laid out as models/kv_layout.h says.
#pragma once

#include <cstdint>

#include "gpu/cuda/vector_ops.h"
#include "models/kv_layout.h"

namespace thermocline::cuda {

// Where rows and pages are in a step, in the device's memory, where it is before the step's first kernel begins.
struct RowBlock {  // consecutive rows of one sequence
  int32_t first_row;
  int32_t n_rows;  // at most RowsPerBlock()
  int32_t first_position;
  int32_t span;  // whose pages it reads
};
struct StepTables {
  const int32_t* position = nullptr;     // (rows)
  const int32_t* span_of_row = nullptr;  // (rows)
  const RowBlock* blocks = nullptr;      // (n_blocks) cover all rows in order
  int n_rows = 0, n_blocks = 0;
  const uint64_t* pages[kLayerKinds] = {};  // (spans, max_pages) addresses; 0 where there is none
  int max_pages = 0;
};

// Where a layer's keys and values stand within a page.
struct KvPlace {
  int kind = 0;
  int64_t offset_bytes = 0;
  int n_head_kv = 1, head_dim = 1;
  int first_token = 0, end_token = INT32_MAX;  // those that the device holds; multiples of kPageTokens
};

// Stores keys and values (rows, n_head_kv * head_dim) whose position is in [first_token, end_token). Round to nearest
// even, clamped to F16's finite range; NaN stays NaN.
void LaunchStoreKv(const Queue& queue, const StepTables& step, const KvPlace& kv, ConstRows key, ConstRows value);

// Queries of one KV head that a thread block works on together.
inline constexpr int kBlockQueries = 16;
constexpr int RowsPerBlock(int group) { return group >= kBlockQueries ? 1 : kBlockQueries / group; }

// out = softmax(scale q K^T) V for every row and head over tokens t in [first_token, end_token) with position - window
// < t <= position (window 0: all up to position), by online softmax (arXiv:2205.14135). Up to kDecodeRows rows are cut
// into pages, merged in order (split-KV), unless head_dim is no multiple of 8 or above 256; more rows fill the device
// by themselves. What is launched depends on numbers of rows alone, so that a recorded launch serves a growing context.
struct AttentionArgs {
  ConstRows q;  // (rows, n_head * head_dim)
  Rows out;
  int n_head = 1;
  int window = 0;
  float scale = 1;
  // Leaves the state instead: of a row n_head maxima, n_head sums of exp(score - max), then of each head head_dim sums
  // of exp(score - max) * v; -inf, 0 and 0 where the row sees none of the tokens.
  bool state = false;
};
inline constexpr int kDecodeRows = 8;
inline constexpr int kMaxAttentionHeadDim = 512;
// Floats of scratch for decode rows over max_pages pages.
int64_t AttentionScratch(int n_head, int head_dim, int max_pages);
void LaunchAttention(const Queue& queue, const StepTables& step, const KvPlace& kv, const AttentionArgs& args,
                     float* scratch);

// out (rows, n_head * head_dim) = attention over the tokens of both states.
void LaunchMergeStates(const Queue& queue, ConstRows a, ConstRows b, int n_head, int head_dim, Rows out, int n_rows);

// cuda/ref/attention.cc: the specification, for one head of one row. keys, values: (n_tokens, head_dim) of the tokens
// seen. Leaves max, sum and acc as AttentionArgs::state says; out = acc / sum.
void AttentionReference(const float* q, const float* keys, const float* values, int n_tokens, int head_dim, float scale,
                        float* max, float* sum, float* acc);

}  // namespace thermocline::cuda
