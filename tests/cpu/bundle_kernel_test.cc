#include "cpu/bundle_kernel.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "cpu/activations.h"
#include "cpu/vector_ops.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {
namespace {

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0};
constexpr int64_t kFf = 64;

// Bundles and a row of activations between guard pages.
struct Case {
  BundleShape shape;
  test::GuardedBuffer<uint8_t> memory, x;
  std::vector<float> values;  // of x, as quantized
  Bundles bundles;

  Case(DType type, int64_t n_embd, uint32_t seed)
      : shape{BundleShape::UpType(type), BundleShape::DownType(type), n_embd, kFf},
        memory(shape.bytes(), 64),
        x(SpreadBytes(n_embd), 64) {
    std::mt19937 rng(seed);
    const auto up = test::RandomWeights(type, kFf, n_embd, rng), down = test::RandomWeights(type, n_embd, kFf, rng);
    std::memset(memory.data(), 0, memory.size());
    bundles = Bundles(shape, memory.data());
    bundles.PackSlice({type, up.data(), n_embd}, {type, down.data(), kFf}, 0, Isa::kScalar);
    memory.Protect();
    values = test::Random(seed).Normals(n_embd);
    Buffer row(ActivationRowBytes(n_embd), "a test");
    VectorOpsFor(Isa::kScalar).quantize(values.data(), n_embd, LoPlane::kAll, row.data());
    SpreadActivations(row.data(), n_embd, x.data());
  }
  // Every `step`-th neuron of a group.
  std::vector<const uint8_t*> Neurons(int64_t group, int step) const {
    std::vector<const uint8_t*> list;
    for (int64_t i = 0; i < kBundleNeurons; i += step) list.push_back(bundles.bundle(group * kBundleNeurons + i));
    return list;
  }
};

std::vector<float> RunUp(const BundleKernel& kernel, const Case& c, int step) {
  const auto list = c.Neurons(1, step);
  test::GuardedBuffer<float> out(list.size());
  kernel.Up({list.data(), c.x.data(), out.data(), static_cast<int64_t>(out.size())});
  return out.ToVector();
}

std::vector<float> RunDown(const BundleKernel& kernel, const Case& c, int step, const std::vector<float>& h) {
  const auto list = c.Neurons(1, step);
  test::GuardedBuffer<float> y(c.shape.n_outputs(), 64), guarded_h(h);
  const std::vector<float> before = test::Random(3).Normals(y.size());
  std::copy(before.begin(), before.end(), y.begin());
  float h_sum = 0;
  for (const float value : h) h_sum += value;
  const auto n = static_cast<int64_t>(h.size());
  kernel.Down({list.data(), guarded_h.data(), c.bundles.down_scales(1), y.data(), n, h_sum, list.data(),
               c.bundles.down_scales(0), n});
  return y.ToVector();
}

}  // namespace

TEST_CASE("bundle kernel: the reference is the product with the weights") {
  for (const DType type : kTypes)
    for (const int64_t n_embd : {32, 96, 608}) {
      CAPTURE(Info(type).name);
      CAPTURE(n_embd);
      const Case c(type, n_embd, 1);
      const BundleKernel kernel(Isa::kScalar, c.shape);
      const std::vector<float> up = RunUp(kernel, c, 3);
      std::vector<float> row(n_embd), h = test::Random(2).Normals(up.size());
      std::vector<double> y(n_embd), magnitude(n_embd);
      const std::vector<float> before = test::Random(3).Normals(n_embd);
      for (size_t i = 0; i < up.size(); ++i) {
        c.bundles.DequantizeUp(kBundleNeurons + 3 * i, row.data());
        double dot = 0, size = 0;
        for (int64_t k = 0; k < n_embd; ++k) dot += row[k] * c.values[k], size += std::fabs(row[k] * c.values[k]);
        CHECK(std::fabs(up[i] - dot) <= 1e-3 * size);  // of the quantization of x
        c.bundles.DequantizeDown(kBundleNeurons + 3 * i, row.data());
        for (int64_t e = 0; e < n_embd; ++e) y[e] += double{h[i]} * row[e], magnitude[e] += std::fabs(h[i] * row[e]);
      }
      const std::vector<float> down = RunDown(kernel, c, 3, h);
      for (int64_t e = 0; e < n_embd; ++e)
        CHECK(std::fabs(down[e] - (before[e] + y[e])) <= 1e-4 * (std::fabs(before[e]) + magnitude[e]));
    }
}

TEST_CASE("bundle kernel: every ISA equals the reference, and every other to the bit") {
  for (const DType type : kTypes)
    for (const int64_t n_embd : {32, 96, 128, 512, 608, 1088})
      for (const int step : {1, 3, 40}) {
        CAPTURE(Info(type).name);
        CAPTURE(n_embd);
        CAPTURE(step);
        const Case c(type, n_embd, static_cast<uint32_t>(n_embd + step));
        const BundleKernel reference(Isa::kScalar, c.shape);
        const std::vector<float> up = RunUp(reference, c, step), h = test::Random(4).Normals(up.size());
        const std::vector<float> down = RunDown(reference, c, step, h);
        std::vector<float> first_up, first_down;
        for (const Isa isa : test::RunnableIsas()) {
          CAPTURE(Name(isa));
          const BundleKernel kernel(isa, c.shape);
          CHECK(kernel.name() != "reference");
          const std::vector<float> up_here = RunUp(kernel, c, step), down_here = RunDown(kernel, c, step, h);
          // Codes are below 32 or, at 8 bits, 128 in size, scales at most 1.
          const double largest = type == DType::kQ8_0 ? 128 : 32;
          test::CheckNear(up_here, up, [&](size_t) { return 8 * 0x1p-24 * largest * static_cast<double>(n_embd); });
          test::CheckNear(down_here, down, [&](size_t) { return 8 * 0x1p-24 * 128 * 32.; });
          if (first_up.empty()) first_up = up_here, first_down = down_here;
          test::CheckSame<float>(up_here, first_up);
          test::CheckSame<float>(down_here, first_down);
        }
      }
}

TEST_CASE("bundle kernel: leaving out a neuron with h = 0 changes no bit") {
  for (const DType type : kTypes)
    for (const Isa isa : test::RunnableIsas()) {
      CAPTURE(Info(type).name);
      CAPTURE(Name(isa));
      const Case c(type, 608, 5);
      const BundleKernel kernel(isa, c.shape);
      std::vector<float> all = test::Random(6).Normals(kBundleNeurons), some;
      for (int i = 0; i < kBundleNeurons; ++i)
        if (i % 3 == 0)
          some.push_back(all[i]);
        else
          all[i] = 0;
      test::CheckSame<float>(RunDown(kernel, c, 3, some), RunDown(kernel, c, 1, all));
    }
}

}  // namespace thermocline
