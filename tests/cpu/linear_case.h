// What tests of the packed product share: weights and activations between guard pages, and the result that
// cpu/linear.h promises for them.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/activations.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/random_weights.h"

namespace thermocline::test {

// A matrix and activation rows with every code possible.
struct LinearCase {
  const PackedFormat& format;
  int64_t n, k;
  int m;
  int with_lo;  // every how manieth group has a lo plane; 0: none
  PackedMatrix packed;
  GuardedBuffer<uint8_t> panels, x;

  LinearCase(const PackedFormat& format, int64_t n, int64_t k, int m, int with_lo, uint32_t seed, bool extreme = false)
      : format(format),
        n(n),
        k(k),
        m(m),
        with_lo(with_lo),
        packed(format.source, n, k),
        panels(packed.bytes(), 64),
        x(m * ActivationRowBytes(k), 64) {
    std::mt19937 rng(seed);
    const std::vector<uint8_t> source = RandomWeights(format.source, n, k, rng, extreme);
    packed.PackPanels(source.data(), 0, packed.n_panels(), ChooseIsa());
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

// y by the order of operations that cpu/linear.h gives, on exact integer sums: (m, 16 * panels), beginning with y.
inline void Promised(const LinearCase& c, std::vector<float>& y) {
  const int64_t n_padded = c.packed.n_panels() * kPanelRows;
  for (int64_t n = 0; n < n_padded; ++n)
    for (int64_t k0 = 0; k0 < c.packed.n_blocks() * c.format.block_k(); k0 += c.format.group) {
      const int64_t block = n / kPanelRows * c.packed.n_blocks() + k0 / c.format.block_k();
      const PackedGroup w =
          ReadGroup(c.format, c.panels.data() + block * c.format.block_bytes(), static_cast<int>(n % kPanelRows),
                    static_cast<int>(k0 % c.format.block_k() / c.format.group));
      for (int row = 0; row < c.m; ++row) {
        int64_t dot = 0;
        for (int j = 0; j < c.format.group; ++j) dot += (w.code[j] - c.format.zero_point) * c.Code(row, k0 + j);
        const ActivationMeta& meta = c.Meta(row, k0 / 32);
        float& sum = y[row * n_padded + n];
        sum = std::fma(static_cast<float>(dot) * meta.scale, w.scale, sum);
        if (c.format.has_min) sum = std::fma(w.min, c.format.group == 32 ? meta.sum32 : meta.sum16[k0 / 16 % 2], sum);
      }
    }
}

}  // namespace thermocline::test
