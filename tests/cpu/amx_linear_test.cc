// Prompt rows' products in BF16.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "cpu/linear.h"
#include "models/dtype.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/linear_case.h"

namespace thermocline {
namespace {

constexpr Isa kWithTiles[] = {Isa::kAmx};
bool Runs() { return !test::RunnableIsas(kWithTiles).empty(); }

// A matrix and m rows of x in BF16.
struct Case : test::LinearCase {
  std::vector<float> values;  // (m, k), before they are rounded

  Case(const PackedFormat& format, int64_t n, int64_t k, int m, uint32_t seed)
      : LinearCase(format, n, k, m, 0, seed), values(test::Random(seed).Normals(m * k)) {
    for (int i = 0; i < m; ++i) RoundToBf16(&values[i * k], k, x.data() + i * ActivationRowBytes(k));
  }
  float Value(int row, int64_t i) const { return Bf16ToFloat(FloatToBf16(values[row * k + i])); }
};

std::vector<float> Reference(const Case& c, std::vector<float> y, bool accumulate) {
  LinearArgs args = c.Args(y.data());
  args.accumulate = accumulate;
  for (int row = 0; row < c.m; ++row) {
    Bf16LinearReference(c.format, args);
    args.x += args.x_stride_bytes;
    args.y += args.y_stride_bytes / static_cast<int64_t>(sizeof(float));
  }
  return y;
}

// Products are exact in float, and each of k sums rounds once.
double Tolerance(const Case& c, int row, int64_t n, float before) {
  double magnitude = std::abs(before);
  std::vector<float> w(c.k);
  c.packed.DequantizeRow(n, w.data());
  for (int64_t k = 0; k < c.k; ++k) magnitude += std::abs(w[k] * c.Value(row, k));
  return (16 + std::sqrt(static_cast<double>(c.k))) * magnitude * 0x1p-24 + 1e-30;
}

}  // namespace

TEST_CASE("AMX: rows rounded to BF16 are what the scalar rounding says, zeros behind them") {
  if (!Runs()) return;
  for (const int64_t k : {1, 15, 16, 17, 31, 32, 33, 63, 64, 100, 576}) {
    CAPTURE(k);
    const std::vector<float> values = test::Random(k).Normals(k);
    test::GuardedBuffer<float> x(k, alignof(float));
    std::copy(values.begin(), values.end(), x.begin());
    const int64_t padded = ActivationGroups(k) * kActivationGroup;
    test::GuardedBuffer<uint8_t> out(2 * padded, 64);
    std::fill(out.begin(), out.end(), uint8_t{0xff});
    RoundToBf16(x.data(), k, out.data());
    for (int64_t i = 0; i < padded; ++i) {
      uint16_t value;
      std::memcpy(&value, out.data() + 2 * i, sizeof(value));
      REQUIRE(value == (i < k ? FloatToBf16(values[i]) : 0));
    }
  }
}

TEST_CASE("AMX: every format equals the reference, any M, tails in N and K, accumulating or not") {
  if (!Runs()) return;
  for (const PackedFormat& format : PackedFormats()) {
    const LinearKernel kernel(Isa::kAmx, format);
    const int64_t unit = Info(format.source).block;
    // Below, at and beyond a K block.
    for (const int64_t k : {unit, 3 * unit, int64_t{1024}, 1024 + 3 * unit})
      for (const int64_t n : {1, 16, 17, 40})
        for (const int m : {1, 2, 15, 16, 17, 31, 32, 33, 70}) {
          if (k * n * m > 300'000) continue;  // the reference is slow
          const bool accumulate = (n + m) % 2 == 0;
          CAPTURE(format.name);
          CAPTURE(k);
          CAPTURE(n);
          CAPTURE(m);
          const Case c(format, n, k, m, static_cast<uint32_t>(k * 31 + n * 7 + m));
          const std::vector<float> before = test::Random(m).Normals(c.y_size());
          const std::vector<float> expected = Reference(c, before, accumulate);
          test::GuardedBuffer<float> y(c.y_size(), 64);
          std::copy(before.begin(), before.end(), y.begin());
          LinearArgs args = c.Args(y.data());
          args.accumulate = accumulate;
          kernel.Run(args, m, PromptForm::kBf16);
          for (int row = 0; row < m; ++row)
            for (int64_t i = 0; i < n; ++i) {
              const int64_t at = row * c.packed.n_panels() * kPanelRows + i;
              REQUIRE(std::abs(y[at] - expected[at]) <= Tolerance(c, row, i, accumulate ? before[at] : 0));
            }
        }
  }
}

TEST_CASE("AMX: a row is the same bits for any M, and K may come in parts") {
  if (!Runs()) return;
  for (const PackedFormat& format : PackedFormats()) {
    CAPTURE(format.name);
    const LinearKernel kernel(Isa::kAmx, format);
    const Case c(format, 48, 5 * 256, 70, 7);
    std::vector<float> together(c.y_size());
    kernel.Run(c.Args(together.data()), c.m, PromptForm::kBf16);
    for (const int m : {1, 4, 16, 23, 33}) {
      CAPTURE(m);
      std::vector<float> apart(c.y_size());
      for (int row = 0; row < c.m; row += m) {
        LinearArgs args = c.Args(apart.data());
        args.x += row * args.x_stride_bytes;
        args.y += row * 48;
        kernel.Run(args, std::min(m, c.m - row), PromptForm::kBf16);
      }
      CHECK(together == apart);
    }
  }
}

}  // namespace thermocline
