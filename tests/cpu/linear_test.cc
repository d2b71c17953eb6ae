#include "cpu/linear.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "cpu/activations.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {
namespace {

std::vector<Isa> RunnableIsas() { return test::RunnableIsas(test::kGeneratedIsas); }

// A matrix and activation rows with every code possible.
struct Case {
  const PackedFormat& format;
  int64_t n, k;
  int m;
  int with_lo;  // every how manieth group has a lo plane; 0: none
  PackedMatrix packed;
  test::GuardedBuffer<uint8_t> panels, x;

  Case(const PackedFormat& format, int64_t n, int64_t k, int m, int with_lo, uint32_t seed, bool extreme = false)
      : format(format),
        n(n),
        k(k),
        m(m),
        with_lo(with_lo),
        packed(format.source, n, k),
        panels(packed.bytes(), 64),
        x(m * ActivationRowBytes(k), 64) {
    std::mt19937 rng(seed);
    std::vector<uint8_t> source = test::RandomWeights(format.source, n, k, rng);
    packed.PackPanels(source.data(), 0, packed.n_panels());
    std::memcpy(panels.data(), packed.panel(0), packed.bytes());
    for (int i = 0; i < m; ++i) FillRow(x.data() + i * ActivationRowBytes(k), rng, extreme);
  }

  void FillRow(uint8_t* row, std::mt19937& rng, bool extreme) const {
    std::memset(row, 0, ActivationRowBytes(k));
    const auto meta = [&](int64_t g) { return reinterpret_cast<ActivationMeta*>(row + ActivationMetaOffset(g)); };
    for (int64_t g = 0; g < k / 32; ++g) {
      int sum[2] = {0, 0};
      // Rows disagree about which groups have one.
      const bool has_lo = with_lo && (g + rng() % 2) % with_lo == 0;
      for (int64_t i = 32 * g; i < 32 * (g + 1); ++i) {
        const int hi = extreme ? (rng() % 2 ? 127 : -127) : static_cast<int>(rng() % 255) - 127;
        const int any_lo = extreme ? (rng() % 2 ? 127 : -128) : static_cast<int>(rng() % 256) - 128;
        const int lo = has_lo ? any_lo : 0;
        row[ActivationOffset(i, 0)] = static_cast<uint8_t>(hi);
        row[ActivationOffset(i, 1)] = static_cast<uint8_t>(lo);
        sum[i % 32 / 16] += 256 * hi + lo;
      }
      const float scale = std::ldexp(1.f + rng() % 256 / 256.f, -15);
      *meta(g) = MakeActivationMeta(scale, sum[0], sum[1], meta(g)->lo_groups);
      meta(g / kMaskGroups * kMaskGroups)->lo_groups |= static_cast<uint16_t>(has_lo << g % kMaskGroups);
    }
  }
  const uint8_t* Row(int i) const { return x.data() + i * ActivationRowBytes(k); }
  int Code(int row, int64_t i) const {
    const auto plane = [&](int p) { return static_cast<int8_t>(Row(row)[ActivationOffset(i, p)]); };
    return 256 * plane(0) + plane(1);
  }
  const ActivationMeta& Meta(int row, int64_t group) const {
    return *reinterpret_cast<const ActivationMeta*>(Row(row) + ActivationMetaOffset(group));
  }

  LinearArgs Args(float* y) const {
    return {panels.data(),          x.data(),          ActivationRowBytes(k), y,
            packed.n_panels() * 64, packed.n_panels(), packed.n_blocks(),     0};
  }
  int64_t y_size() const { return m * packed.n_panels() * kPanelRows; }
};

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

// The order of operations that cpu/linear.h gives, on exact integer sums. n in the first panel.
float Promised(const Case& c, int row, int n, float sum = 0) {
  for (int64_t k0 = 0; k0 < c.packed.n_blocks() * c.format.block_k(); k0 += c.format.group) {
    const uint8_t* block = c.panels.data() + k0 / c.format.block_k() * c.format.block_bytes();
    const int in_block = static_cast<int>(k0 % c.format.block_k());
    const PackedGroup w = ReadGroup(c.format, block, n, in_block / c.format.group);
    int32_t dot = 0;
    for (int j = 0; j < c.format.group; ++j) dot += (w.code[j] - c.format.zero_point) * c.Code(row, k0 + j);
    const ActivationMeta& meta = c.Meta(row, k0 / 32);
    sum = std::fma(static_cast<float>(dot) * meta.scale, w.scale, sum);
    if (c.format.has_min) sum = std::fma(w.min, c.format.group == 32 ? meta.sum32 : meta.sum16[k0 / 16 % 2], sum);
  }
  return sum;
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

TEST_CASE("linear: every bit is what cpu/linear.h promises, extremes and accumulation included") {
  for (const Isa isa : RunnableIsas())
    for (const PackedFormat& format : PackedFormats()) {
      const LinearKernel kernel(isa, format);
      for (uint32_t seed = 0; seed < 120; ++seed) {
        CAPTURE(Name(isa));
        CAPTURE(format.name);
        CAPTURE(seed);
        const int m = 1 + seed % 9 + (seed % 3 == 0 ? 16 : 0), with_lo = static_cast<int>(seed / 2 % 4);
        const int64_t unit = Info(format.source).block;
        const Case c(format, 16, seed % 5 == 0 ? 512 + unit : unit * (1 + seed % 3), m, with_lo, seed, seed % 2 == 0);
        test::GuardedBuffer<float> y(c.y_size(), 64);
        LinearArgs args = c.Args(y.data());
        kernel.Run(args, m);
        for (int row = 0; row < m; ++row)
          for (int n = 0; n < kPanelRows; ++n) REQUIRE(y[row * kPanelRows + n] == Promised(c, row, n));
        const std::vector<float> before = y.ToVector();
        args.accumulate = 1;
        kernel.Run(args, m);
        for (int row = 0; row < m; ++row)
          for (int n = 0; n < kPanelRows; ++n) {
            const int i = row * kPanelRows + n;
            REQUIRE(y[i] == Promised(c, row, n, before[i]));
          }
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
