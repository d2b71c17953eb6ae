#include "predictor/low_rank.h"

#include <cmath>
#include <random>

#include "cpu/float_gemm.h"
#include "models/check.h"

namespace thermocline {
namespace {

constexpr int kIterations = 4;
constexpr double kLeastNew = 1e-4;  // of a direction's length, that must not lie in those before it

float Dot(const float* a, const float* b, int64_t n) {
  constexpr int kLanes = 8;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < n; ++i) sums[0] += a[i] * b[i];
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void AddMultiple(float factor, const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] += factor * x[i];
}

void Multiply(float factor, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] *= factor;
}

class SubspaceIteration {
 public:
  SubspaceIteration(std::span<const float> w, std::span<const float> x, int64_t k, int64_t rank)
      : w_(w),
        x_(x),
        n_(std::ssize(w) / k),
        n_inputs_(std::ssize(x) / k),
        k_(k),
        rank_(rank),
        in_(rank * k),
        moments_(rank * k),
        reduced_(rank * n_inputs_) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal;
    for (float& value : in_) value = normal(random);
  }

  LowRank Run() {
    std::vector<float> y(static_cast<size_t>(n_ * rank_));
    Orthonormalize();
    for (int i = 0; i < kIterations; ++i) {
      TakeMoments();
      FloatGemm({Transposed::kB, n_, rank_, k_, w_.data(), moments_.data(), y.data()});
      FloatGemm({Transposed::kA, rank_, k_, n_, y.data(), w_.data(), in_.data()});
      Orthonormalize();
    }
    TakeMoments();
    LowRank result{in_, std::vector<float>(static_cast<size_t>(rank_ * n_))};
    FloatGemm({Transposed::kB, rank_, n_, k_, moments_.data(), w_.data(), result.out.data()});
    return result;
  }

 private:
  // moments_ = mean of (in x) x^T.
  void TakeMoments() {
    FloatGemm({Transposed::kNone, rank_, k_, n_inputs_, reduced_.data(), x_.data(), moments_.data()});
    Multiply(1 / static_cast<float>(n_inputs_), std::ssize(moments_), moments_.data());
  }

  // Makes the rows of in_ such that those of reduced_ = in x^T are orthogonal, with a mean square of 1, by
  // Gram-Schmidt, twice. A row that lies in those before it becomes 0.
  void Orthonormalize() {
    FloatGemm({Transposed::kB, rank_, n_inputs_, k_, in_.data(), x_.data(), reduced_.data()});
    const auto n = static_cast<float>(n_inputs_);
    for (int64_t j = 0; j < rank_; ++j) {
      float *row = in_.data() + j * k_, *values = reduced_.data() + j * n_inputs_;
      const float before = std::sqrt(Dot(values, values, n_inputs_) / n);
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t i = 0; i < j; ++i) {
          const float* other = reduced_.data() + i * n_inputs_;
          const float factor = -Dot(other, values, n_inputs_) / n;
          AddMultiple(factor, other, n_inputs_, values);
          AddMultiple(factor, in_.data() + i * k_, k_, row);
        }
      const float length = std::sqrt(Dot(values, values, n_inputs_) / n);
      const float scale = length > kLeastNew * before ? 1 / length : 0;
      Multiply(scale, n_inputs_, values);
      Multiply(scale, k_, row);
    }
  }

  const std::span<const float> w_, x_;
  const int64_t n_, n_inputs_, k_, rank_;
  std::vector<float> in_, moments_;  // (rank, k)
  std::vector<float> reduced_;       // (rank, n_inputs)
};

}  // namespace

LowRank ApproximateLowRank(std::span<const float> w, std::span<const float> x, int64_t k, int64_t rank) {
  CHECK(rank <= k && !x.empty() && !w.empty());
  return SubspaceIteration(w, x, k, rank).Run();
}

}  // namespace thermocline
