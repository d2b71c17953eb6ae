#include "cpu/linear.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/linear_case.h"

namespace thermocline {
namespace {

using Case = test::LinearCase;

std::vector<Isa> RunnableIsas() { return test::RunnableIsas(test::kGeneratedIsas); }

std::vector<float> Reference(const Case& c) {
  std::vector<float> y(c.y_size());
  LinearKernel(Isa::kScalar, c.format).Run(c.Args(y.data()), c.m);
  return y;
}

// What rounding may make of it: eps times the sum of all magnitudes that enter, per group two fma and a product.
double Tolerance(const Case& c, int row, int64_t n) {
  double magnitude = 0;
  std::vector<float> w(c.k);
  c.packed.DequantizeRow(n, w.data());
  for (int64_t k = 0; k < c.k; ++k)
    magnitude += (std::abs(w[k]) + 32) * std::abs(c.Meta(row, k / 32).scale * c.Code(row, k));
  return 8 * magnitude * 0x1p-24;
}

}  // namespace

TEST_CASE("linear: every ISA and format equals the reference, any M, tails in N and K") {
  for (const Isa isa : RunnableIsas())
    for (const PackedFormat& format : PackedFormats()) {
      const LinearKernel kernel(isa, format);
      CHECK(kernel.name() != "reference");
      const int64_t unit = Info(format.source).block;
      // Below, at and beyond a K block of the tiles.
      for (const int64_t k : {unit, 3 * unit, int64_t{512}, 512 + 3 * unit})
        for (const int64_t n : {1, 16, 17, 40})
          for (const int m : {1, 2, 3, 5, 8, 19, 24}) {
            if (k * n * m > 200'000) continue;  // the reference is slow
            for (const int with_lo : {0, 1, 3}) {
              CAPTURE(Name(isa));
              CAPTURE(format.name);
              CAPTURE(k);
              CAPTURE(n);
              CAPTURE(m);
              CAPTURE(with_lo);
              Case c(format, n, k, m, with_lo, static_cast<uint32_t>(k * 31 + n * 7 + m));
              const std::vector<float> expected = Reference(c);
              test::GuardedBuffer<float> y(c.y_size(), 64);
              kernel.Run(c.Args(y.data()), m);
              for (int row = 0; row < m; ++row)
                for (int64_t i = 0; i < n; ++i) {
                  const int64_t at = row * c.packed.n_panels() * kPanelRows + i;
                  REQUIRE(std::abs(y[at] - expected[at]) <= Tolerance(c, row, i));
                }
            }
          }
    }
}

TEST_CASE(
    "linear: every bit of 10,000 random shapes is what cpu/linear.h promises, with NaN in registers never written") {
#ifdef THERMOCLINE_SANITIZED  // which does not see into generated code, and slows the rest down twentyfold
  constexpr uint32_t kShapes = 500;
#else
  constexpr uint32_t kShapes = 10'000;
#endif
  const auto formats = PackedFormats();
  const std::vector<Isa> isas = RunnableIsas();
  std::vector<std::vector<LinearKernel>> kernels(isas.size());
  for (size_t i = 0; i < isas.size(); ++i)
    for (const PackedFormat& format : formats) kernels[i].emplace_back(isas[i], format, true);
  for (uint32_t seed = 0; seed < kShapes; ++seed) {
    std::mt19937 rng(seed);
    const auto up_to = [&](uint32_t most) { return static_cast<int>(1 + rng() % most); };
    const PackedFormat& format = formats[seed % formats.size()];
    const int unit = Info(format.source).block;
    // Small shapes; one in 16 has more than one K block of the tiles, one in 64 more rows than stay in L2.
    const int k = unit * (rng() % 16 == 0 ? 512 / unit + up_to(3) : up_to(unit == 256 ? 2 : 9));
    const bool many = rng() % 64 == 0;
    const int m = many ? 63 + up_to(9) : up_to(24), n = many ? up_to(17) : up_to(40);
    const int with_lo = static_cast<int>(rng() % 4);
    const bool extreme = rng() % 2, accumulate = rng() % 2;
    const Case c(format, n, k, m, with_lo, seed, extreme);
    const std::vector<float> before = test::Random(seed).Normals(accumulate ? c.y_size() : 0);
    std::vector<float> expected = accumulate ? before : std::vector<float>(c.y_size());
    Promised(c, expected);
    for (size_t i = 0; i < isas.size(); ++i) {
      CAPTURE(Name(isas[i]));
      CAPTURE(format.name);
      CAPTURE(seed);
      CAPTURE(k);
      CAPTURE(n);
      CAPTURE(m);
      test::GuardedBuffer<float> y(c.y_size(), 64);
      std::copy(before.begin(), before.end(), y.begin());
      LinearArgs args = c.Args(y.data());
      args.accumulate = accumulate;
      kernels[i][seed % formats.size()].Run(args, m);
      REQUIRE(std::memcmp(y.data(), expected.data(), expected.size() * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("linear: a row is the same bits for any M and on every ISA") {
  for (const PackedFormat& format : PackedFormats())
    for (const int with_lo : {0, 1, 3}) {
      Case c(format, 48, 3 * 256, 70, with_lo, 7);
      std::vector<float> first;
      for (const Isa isa : RunnableIsas()) {
        const LinearKernel kernel(isa, format);
        std::vector<float> together(c.y_size());
        kernel.Run(c.Args(together.data()), c.m);
        CAPTURE(Name(isa));
        CAPTURE(format.name);
        CAPTURE(with_lo);
        for (const int m : {1, 4, 5, 16, 23}) {
          CAPTURE(m);
          std::vector<float> apart(c.y_size());
          for (int row = 0; row < c.m; row += m) {
            LinearArgs args = c.Args(apart.data());
            args.x += row * args.x_stride_bytes;
            args.y += row * 48;
            kernel.Run(args, std::min(m, c.m - row));
          }
          CHECK(together == apart);
        }
        if (first.empty()) first = together;
        CHECK(together == first);
      }
    }
}

}  // namespace thermocline
