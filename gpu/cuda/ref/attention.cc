// The specification of gpu/cuda/attention.h, in double.
#include "gpu/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace thermocline::cuda {

void AttentionReference(const float* q, const float* keys, const float* values, int n_tokens, int head_dim, float scale,
                        float* max, float* sum, float* acc) {
  std::vector<double> score(n_tokens);
  double largest = -std::numeric_limits<double>::infinity(), total = 0;
  for (int t = 0; t < n_tokens; ++t) {
    for (int d = 0; d < head_dim; ++d) score[t] += double{q[d]} * scale * keys[t * head_dim + d];
    largest = std::max(largest, score[t]);
  }
  for (int t = 0; t < n_tokens; ++t) total += std::exp(score[t] - largest);
  for (int d = 0; d < head_dim; ++d) {
    double v = 0;
    for (int t = 0; t < n_tokens; ++t) v += std::exp(score[t] - largest) * values[t * head_dim + d];
    acc[d] = static_cast<float>(v);
  }
  *max = static_cast<float>(largest);
  *sum = static_cast<float>(total);
}

}  // namespace thermocline::cuda
