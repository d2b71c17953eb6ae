#include "cpu/float_gemm.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"

namespace thermocline {

TEST_CASE("float_gemm: every way of transposing is the product") {
  struct Shape {
    int64_t m, n, k;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, {3, 5, 7}, {32, 17, 64}, {70, 129, 33}})
    for (const Transposed transposed : {Transposed::kNone, Transposed::kA, Transposed::kB}) {
      const int64_t m = shape.m, n = shape.n, k = shape.k;
      CAPTURE(m);
      CAPTURE(n);
      CAPTURE(k);
      CAPTURE(static_cast<int>(transposed));
      test::Random random(static_cast<uint64_t>(m + n + k));
      const std::vector<float> a = random.Normals(m * k), b = random.Normals(k * n);
      test::GuardedBuffer<float> c(static_cast<size_t>(m * n));
      FloatGemm({transposed, m, n, k, a.data(), b.data(), c.data()});
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t p = 0; p < k; ++p)
            sum += double{a[transposed == Transposed::kA ? p * m + i : i * k + p]} *
                   b[transposed == Transposed::kB ? j * k + p : p * n + j];
          CHECK(std::fabs(c[i * n + j] - sum) <= 1e-5 * (1 + std::fabs(sum)) * std::sqrt(static_cast<double>(k)));
        }
    }
}

}  // namespace thermocline
