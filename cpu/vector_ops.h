// The ops between matrix products, one table of functions per instruction set. The scalar row is the specification.
//
// What a function returns for one row (one query, one head) depends on that row alone, never on its neighbours or on
// how many there are.
#pragma once

#include <cstdint>

#include "cpu/activations.h"
#include "cpu/isa.h"
#include "models/kv_layout.h"
#include "models/model.h"

namespace thermocline {

inline constexpr int kSplitTokens = 512;  // tokens whose attention is one partial result, merged in order
inline constexpr int kMaxQueries = 128;   // queries per AttentionSplit

// softmax(q K^T) V of n_queries queries over the tokens of one split, all of one KV head, by online softmax over pages
// (arXiv:2205.14135). Leaves the unnormalized state, so that splits can be merged.
struct AttentionSplit {
  const float* q;           // (n_queries, head_dim), already multiplied by the attention scale
  const int32_t* position;  // (n_queries): query i sees tokens t with position[i] - window < t <= position[i]
  int n_queries;
  int head_dim;  // 1 to kMaxHeadDim; a multiple of 32 is fast
  int window;    // 0: all
  bool prompt;   // of prompt rows: F16 may be rounded to 13 bits, queries and weights to 14
  KvTypes types;
  const uint8_t* const* pages;  // (n_pages): keys and values of the head, as models/kv_layout.h says
  int n_pages;
  const uint8_t* next;  // the page that is likely read after these, for prefetching; may be null
  int first_token;      // position of the first token of pages[0]
  float* max;           // (n_queries): largest score seen, -inf where the query sees none of the tokens
  float* sum;           // (n_queries): sum of exp(score - max)
  float* acc;           // (n_queries, head_dim): sum of exp(score - max) * v
};

// c[i, j] += sum over p of a[p, i] b[p, j].
struct OuterProducts {
  const float* a;  // (n_products, m), a_stride floats apart
  int64_t a_stride;
  const float* b;  // (n_products, n)
  int64_t b_stride;
  float* c;  // (m, n)
  int64_t c_stride;
  int64_t m, n, n_products;
};

struct VectorOps {
  Isa isa;
  // out (+)= x / sqrt(mean(x^2) + eps) * weight; out may be x unless accumulating.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, bool accumulate, float* out);
  // out = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias; out may be x.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n, float* out);
  // Rotates the first n_dims of one head in place; cos_sin is (n_dims / 2) pairs (cos, sin).
  void (*rope)(float* head, const float* cos_sin, int n_dims, RopeKind kind);
  // out = act(gate) * up; out may be gate.
  void (*gated_act)(const float* gate, const float* up, int n, Activation activation, float* out);
  void (*act)(const float* x, int n, Activation activation, float* out);  // out = act(x); out may be x
  void (*add)(const float* x, int n, float* out);                         // out += x
  // One row of k values to ActivationRowBytes(k) bytes, 64-byte aligned, padding zeroed. Rounds to nearest even. NaN
  // becomes 0, infinities 2^120. The same bits on every ISA.
  void (*quantize)(const float* x, int64_t k, float large_group, uint8_t* out);
  // Stores one token's key and value of one head into slot `slot` of its page (layout: AttentionSplit::pages), round to
  // nearest even, clamped to F16's finite range. NaN stays NaN in F16, becomes 0 in Q8_0. The same bits on every ISA.
  void (*store_kv)(KvTypes types, const float* key, const float* value, int head_dim, int slot, uint8_t* page);
  void (*attention_split)(const AttentionSplit& args);
  // (max, sum, acc) of n_queries = merge of itself and (max2, sum2, acc2). -inf maxima are neutral.
  void (*attention_merge)(int n_queries, int head_dim, const float* max2, const float* sum2, const float* acc2,
                          float* max, float* sum, float* acc);
  // y[n] = sum_k w[n, k] x[k] for rows [0, n) of a float matrix of type F32, F16 or BF16, stride_bytes apart.
  void (*float_gemv)(DType type, const uint8_t* w, int64_t stride_bytes, int64_t n, int64_t k, const float* x,
                     float* y);
  void (*add_outer_products)(const OuterProducts& args);
};

// The table of `isa`, which must be able to run here.
const VectorOps& VectorOpsFor(Isa isa);

}  // namespace thermocline
