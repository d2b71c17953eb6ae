// The specification of gpu/cuda/linear.h, in double.
#include "gpu/cuda/linear.h"

namespace thermocline::cuda {

void LinearReference(const float* w, const float* x, const float* bias, int m, int n, int64_t k, bool accumulate,
                     float* y) {
  for (int row = 0; row < m; ++row)
    for (int i = 0; i < n; ++i) {
      double sum = bias ? bias[i] : 0;
      for (int64_t j = 0; j < k; ++j) sum += double{w[i * k + j]} * x[row * k + j];
      float& out = y[static_cast<int64_t>(row) * n + i];
      out = static_cast<float>(accumulate ? out + sum : sum);
    }
}

}  // namespace thermocline::cuda
