#include "cpu/linear.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "cpu/activations.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {
namespace {

std::vector<Isa> RunnableIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512})
    if (CanRun(isa))
      isas.push_back(isa);
    else
      MESSAGE("skipped: this CPU has no ", Name(isa));
  return isas;
}

// A matrix and activation rows with every code from -32512 to 32512 possible.
struct Case {
  const PackedFormat& format;
  int64_t n, k;
  int m;
  PackedMatrix packed;
  test::GuardedBuffer<uint8_t> panels, x;

  Case(const PackedFormat& format, int64_t n, int64_t k, int m, uint32_t seed, bool extreme = false)
      : format(format),
        n(n),
        k(k),
        m(m),
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
    const int64_t n_groups = ActivationGroups(k);
    for (int64_t g = 0; g < k / 32; ++g) {
      auto* line = reinterpret_cast<int8_t*>(row + 64 * g);
      auto& meta = reinterpret_cast<ActivationMeta*>(row + 64 * n_groups)[g];
      int sum[2] = {0, 0};
      for (int j = 0; j < 32; ++j) {
        line[j] = static_cast<int8_t>(extreme ? (rng() % 2 ? 127 : -127) : static_cast<int>(rng() % 255) - 127);
        line[32 + j] = static_cast<int8_t>(extreme ? (rng() % 2 ? 127 : -128) : static_cast<int>(rng() % 256) - 128);
        sum[j / 16] += 256 * line[j] + line[32 + j];
      }
      meta.scale = std::ldexp(1.f + rng() % 256 / 256.f, -15);
      meta.sum16[0] = meta.scale * sum[0];
      meta.sum16[1] = meta.scale * sum[1];
      meta.sum32 = meta.scale * (sum[0] + sum[1]);
    }
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
  const uint8_t* x = c.x.data() + row * ActivationRowBytes(c.k);
  for (int64_t k = 0; k < c.k; ++k) {
    const auto* line = reinterpret_cast<const int8_t*>(x) + k / 32 * 64;
    const float scale = reinterpret_cast<const ActivationMeta*>(x + 64 * ActivationGroups(c.k))[k / 32].scale;
    magnitude += (std::abs(w[k]) + 32) * std::abs(scale * (256 * line[k % 32] + line[32 + k % 32]));
  }
  return 8 * magnitude * 0x1p-24;
}

// The order of operations that cpu/linear.h gives, on exact integer sums. n in the first panel.
float Promised(const Case& c, int row, int n) {
  const uint8_t* x = c.x.data() + row * ActivationRowBytes(c.k);
  float sum = 0;
  for (int64_t k0 = 0; k0 < ActivationGroups(c.k) * 32; k0 += c.format.group) {
    const uint8_t* block = c.panels.data() + k0 / c.format.block_k() * c.format.block_bytes();
    const int in_block = static_cast<int>(k0 % c.format.block_k());
    const auto* line = reinterpret_cast<const int8_t*>(x) + k0 / 32 * 64 + k0 % 32;
    const PackedGroup w = ReadGroup(c.format, block, n, in_block / c.format.group);
    int32_t dot = 0;
    for (int j = 0; j < c.format.group; ++j) dot += w.code[j] * (256 * line[j] + line[32 + j]);
    const auto& meta = reinterpret_cast<const ActivationMeta*>(x + 64 * ActivationGroups(c.k))[k0 / 32];
    sum = std::fma(static_cast<float>(dot) * meta.scale, w.scale, sum);
    sum = std::fma(w.min, c.format.group == 32 ? meta.sum32 : meta.sum16[k0 / 16 % 2], sum);
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
      for (const int64_t k : {unit, 2 * unit, 3 * unit, 5 * unit})
        for (const int64_t n : {1, 16, 17, 40})
          for (const int m : {1, 2, 3, 5, 8, 9}) {
            CAPTURE(Name(isa));
            CAPTURE(format.name);
            CAPTURE(k);
            CAPTURE(n);
            CAPTURE(m);
            Case c(format, n, k, m, static_cast<uint32_t>(k * 31 + n * 7 + m));
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

TEST_CASE("linear: every bit is what cpu/linear.h promises, extremes included") {
  for (const Isa isa : RunnableIsas())
    for (const PackedFormat& format : PackedFormats()) {
      const LinearKernel kernel(isa, format);
      for (uint32_t seed = 0; seed < 60; ++seed) {
        CAPTURE(Name(isa));
        CAPTURE(format.name);
        CAPTURE(seed);
        const Case c(format, 16, Info(format.source).block * (1 + seed % 3), 2, seed, seed % 2 == 0);
        test::GuardedBuffer<float> y(c.y_size(), 64);
        kernel.Run(c.Args(y.data()), 2);
        for (int row = 0; row < 2; ++row)
          for (int n = 0; n < kPanelRows; ++n) REQUIRE(y[row * kPanelRows + n] == Promised(c, row, n));
      }
    }
}

TEST_CASE("linear: a row is the same bits for any M, on every ISA, and accumulates") {
  for (const PackedFormat& format : PackedFormats()) {
    Case c(format, 48, 2 * 256, 9, 7);
    std::vector<float> first;
    for (const Isa isa : RunnableIsas()) {
      const LinearKernel kernel(isa, format);
      std::vector<float> together(c.y_size()), alone(c.y_size());
      kernel.Run(c.Args(together.data()), c.m);
      for (int row = 0; row < c.m; ++row) {
        LinearArgs args = c.Args(alone.data());
        args.x += row * args.x_stride_bytes;
        args.y += row * 48;
        kernel.Run(args, 1);
      }
      CAPTURE(Name(isa));
      CAPTURE(format.name);
      CHECK(together == alone);
      if (first.empty()) first = together;
      CHECK(together == first);

      LinearArgs args = c.Args(alone.data());
      args.accumulate = 1;
      kernel.Run(args, c.m);
      for (size_t i = 0; i < alone.size(); ++i) REQUIRE(alone[i] == together[i] + together[i]);
    }
  }
}

}  // namespace thermocline
