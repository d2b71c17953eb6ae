// Attention over KV pages: one page at a time, all queries: scores (tokens across the lanes), softmax weights, weighted
// values (dims across the lanes). What happens to one query does not depend on the others.
#pragma once

#include "cpu/vector_ops_attention_f16.h"
#include "cpu/vector_ops_attention_q8.h"
#include "cpu/vector_ops_attention_staged.h"

namespace thermocline {
namespace {

template <typename V>
void Attention(const AttentionSplit& args) {
  const int n_queries = args.n_queries;
  for (int i = 0; i < n_queries; ++i) args.max[i] = -kInfinity, args.sum[i] = 0;
  for (int64_t i = 0; i < int64_t{n_queries} * args.head_dim; ++i) args.acc[i] = 0;
  const auto [key_type, value_type] = args.types;
  PageState page;
  IntQueries queries;
  if (key_type == DType::kQ8_0)
    QuantizeQueries<V, In8Bits>(args, queries);
  else if (args.prompt)
    QuantizeQueries<V, In13Bits>(args, queries);
  for (int p = 0; p < args.n_pages; ++p) {
    const int64_t token = args.first_token + int64_t{p} * kPageTokens;
    bool any = false;
    for (int i = 0; i < n_queries; ++i) {
      const int64_t position = args.position[i];
      const int64_t end = Most(0, Least(kPageTokens, position + 1 - token));
      const int64_t begin = args.window > 0 ? Most(0, Least(end, position - args.window + 1 - token)) : 0;
      page.begin[i] = static_cast<int>(begin), page.end[i] = static_cast<int>(end);
      any |= begin < end;
    }
    if (!any) continue;
    const uint8_t* keys = args.pages[p];
    const uint8_t* values = keys + KvSideBytes(key_type, args.head_dim);
    const uint8_t* next = p + 1 < args.n_pages ? args.pages[p + 1] : args.next;
    if (key_type == DType::kQ8_0)
      ScoresQ8<V>(args, queries, keys, values, page);
    else if (args.prompt)
      ScoresStaged<V>(args, queries, keys, page);
    else
      ScoresF16<V>(args, keys, values, page);
    for (int i = 0; i < n_queries; ++i) Softmax<V>(page, i, args.max + i, args.sum + i);
    if (value_type == DType::kQ8_0)
      WeightedValuesQ8<V>(args, values, next, page);
    else if (args.prompt)
      WeightedValuesStaged<V>(args, values, page);
    else
      WeightedValuesF16<V>(args, values, next, page);
  }
}

template <typename V>
void Merge(int n_queries, int head_dim, const float* max2, const float* sum2, const float* acc2, float* max, float* sum,
           float* acc) {
  constexpr int L = V::kLanes;
  for (int i = 0; i < n_queries; ++i, acc += head_dim, acc2 += head_dim) {
    if (max2[i] == -kInfinity) continue;
    const float larger = max2[i] > max[i] ? max2[i] : max[i];
    const float one = max[i] == -kInfinity ? 0.f : ExpOf<V>(max[i] - larger), two = ExpOf<V>(max2[i] - larger);
    sum[i] = sum[i] * one + sum2[i] * two;
    max[i] = larger;
    const auto factor = V::Set(one), factor2 = V::Set(two);
    int d = 0;
    for (; d + L <= head_dim; d += L)
      V::Store(acc + d, V::Fma(V::Load(acc2 + d), factor2, V::Mul(V::Load(acc + d), factor)));
    if (const int n = head_dim - d; n > 0)
      V::Store(acc + d, V::Fma(V::Load(acc2 + d, n), factor2, V::Mul(V::Load(acc + d, n), factor)), n);
  }
}

}  // namespace
}  // namespace thermocline
