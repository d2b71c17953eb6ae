#include "predictor/low_rank.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>

namespace thermocline {
namespace {

constexpr int64_t kK = 64, kN = 96, kInputs = 400;

struct Case {
  std::vector<float> w, x;
  // A matrix of that rank, and inputs of which some directions are a hundred times as long as others.
  explicit Case(int64_t rank) : w(kN * kK), x(kInputs * kK) {
    std::mt19937 random(static_cast<uint32_t>(rank));
    std::normal_distribution<float> normal;
    std::vector<float> a(kN * rank), b(rank * kK);
    for (float& value : a) value = normal(random);
    for (float& value : b) value = normal(random);
    for (int64_t i = 0; i < kN; ++i)
      for (int64_t k = 0; k < kK; ++k)
        for (int64_t r = 0; r < rank; ++r) w[i * kK + k] += a[i * rank + r] * b[r * kK + k];
    for (int64_t i = 0; i < kInputs; ++i)
      for (int64_t k = 0; k < kK; ++k) x[i * kK + k] = normal(random) * (k % 8 == 0 ? 10.f : 0.1f);
  }

  // |W x - out^T (in x)|^2 over |W x|^2.
  double Left(const LowRank& low_rank) const {
    const int64_t rank = std::ssize(low_rank.in) / kK;
    double left = 0, all = 0;
    for (int64_t i = 0; i < kInputs; ++i) {
      std::vector<double> reduced(rank);
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t k = 0; k < kK; ++k) reduced[r] += double{low_rank.in[r * kK + k]} * x[i * kK + k];
      for (int64_t n = 0; n < kN; ++n) {
        double full = 0, low = 0;
        for (int64_t k = 0; k < kK; ++k) full += double{w[n * kK + k]} * x[i * kK + k];
        for (int64_t r = 0; r < rank; ++r) low += low_rank.out[r * kN + n] * reduced[r];
        left += (full - low) * (full - low);
        all += full * full;
      }
    }
    return left / all;
  }
};

}  // namespace

TEST_CASE("low rank: a matrix that has the rank is found whole") {
  for (const int64_t rank : {1, 5, 32}) {
    CAPTURE(rank);
    const Case c(rank);
    CHECK(c.Left(ApproximateLowRank(c.w, c.x, kK, rank)) < 1e-6);
  }
}

TEST_CASE("low rank: what matters is what the inputs make large") {
  const Case c(64);  // 8 of 64 inputs make all but a ten-thousandth
  CHECK(c.Left(ApproximateLowRank(c.w, c.x, kK, 8)) < 2e-3);
  double before = 1;
  for (const int64_t rank : {2, 4, 6}) {
    const double left = c.Left(ApproximateLowRank(c.w, c.x, kK, rank));
    CHECK(left < before);
    CHECK(left > 1e-3);
    before = left;
  }
}

TEST_CASE("low rank: inputs with fewer directions than the rank leave nothing and no infinities") {
  Case c(20);
  for (int64_t i = 0; i < kInputs; ++i)
    for (int64_t k = 0; k < kK; ++k) c.x[i * kK + k] = k < 3 ? c.x[i * kK + k] : 0;
  const LowRank low_rank = ApproximateLowRank(c.w, c.x, kK, 32);
  for (const float value : low_rank.in) REQUIRE(std::isfinite(value));
  for (const float value : low_rank.out) REQUIRE(std::isfinite(value));
  CHECK(c.Left(low_rank) < 1e-3);
}

}  // namespace thermocline
