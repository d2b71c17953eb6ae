#include "cpu/bundle_kernel.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu/activations.h"
#include "cpu/vector_ops.h"
#include "tests/cpu/file_weight.h"
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
    test::PackBundles(test::FileWeight(type, up, kFf, n_embd).weight, test::FileWeight(type, down, n_embd, kFf).weight,
                      0, Isa::kScalar, bundles);
    memory.Protect();
    values = test::Random(seed).Normals(n_embd);
    Buffer row(ActivationRowBytes(n_embd), "a test");
    VectorOpsFor(Isa::kScalar).quantize(values.data(), n_embd, kAllGroups, row.data());
    SpreadActivations(row.data(), n_embd, x.data());
  }
  // Every `step`-th neuron of a group.
  std::vector<const uint8_t*> Neurons(int64_t group, int step) const {
    std::vector<const uint8_t*> list;
    for (int64_t i = 0; i < kBundleNeurons; i += step) list.push_back(bundles.bundle(group * kBundleNeurons + i));
    return list;
  }
};

// What is fetched ahead, changes nothing.
BundlesAhead Ahead(const Case& c, const uint8_t* const* list) {
  return {list, nullptr, nullptr, 3, c.bundles.down_scales(0)};
}

std::vector<float> RunUp(const BundleKernel& kernel, const Case& c, int step) {
  auto list = c.Neurons(1, step);
  test::GuardedBuffer<float> out(list.size());
  list.push_back(nullptr);
  BundlesAhead ahead = Ahead(c, list.data());
  kernel.Up({list.data(), c.x.data(), out.data(), static_cast<int64_t>(out.size()), &ahead});
  return out.ToVector();
}

// h = q / 2^15.
std::vector<float> RunDown(const BundleKernel& kernel, const Case& c, int step, std::vector<int16_t> q) {
  auto list = c.Neurons(1, step);
  REQUIRE(list.size() == q.size());
  if (q.size() % 2) list.push_back(list[0]), q.push_back(0);
  test::GuardedBuffer<float> y(c.shape.n_outputs(), 64);
  const test::GuardedBuffer<int16_t> guarded_q(q);
  const test::GuardedBuffer<const uint8_t*> guarded_list(list);
  BundlesAhead ahead = Ahead(c, guarded_list.data());
  const std::vector<float> before = test::Random(3).Normals(y.size());
  std::copy(before.begin(), before.end(), y.begin());
  const int sum = std::accumulate(q.begin(), q.end(), 0);
  const auto n = static_cast<int64_t>(q.size());
  list.push_back(nullptr);
  kernel.Down({.bundle = guarded_list.data(),
               .q = guarded_q.data(),
               .scales = c.bundles.down_scales(1),
               .y = y.data(),
               .n = n,
               .scale = 0x1p-15f,
               .sum = 0x1p-15f * static_cast<float>(sum),
               .correction = -c.shape.down_format().zero_point * sum,
               .ahead = &ahead});
  return y.ToVector();
}

// Extremes among them.
std::vector<int16_t> RandomQ(size_t n, uint64_t seed) {
  test::Random random(seed);
  std::vector<int16_t> q(n);
  for (int16_t& value : q)
    value = static_cast<int16_t>(random.Int(0, 3) ? random.Int(-kActivationMax, kActivationMax)
                                                  : random.Int(0, 1) * 2 * kActivationMax - kActivationMax);
  return q;
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
      const std::vector<int16_t> q = RandomQ(up.size(), 2);
      std::vector<float> row(n_embd);
      std::vector<double> y(n_embd), magnitude(n_embd);
      const std::vector<float> before = test::Random(3).Normals(n_embd);
      for (size_t i = 0; i < up.size(); ++i) {
        c.bundles.DequantizeUp(kBundleNeurons + 3 * i, row.data());
        double dot = 0, size = 0;
        for (int64_t k = 0; k < n_embd; ++k) dot += row[k] * c.values[k], size += std::fabs(row[k] * c.values[k]);
        CHECK(std::fabs(up[i] - dot) <= 1e-3 * size);  // of the quantization of x
        c.bundles.DequantizeDown(kBundleNeurons + 3 * i, row.data());
        for (int64_t e = 0; e < n_embd; ++e) y[e] += 0x1p-15 * q[i] * row[e], magnitude[e] += std::fabs(row[e]);
      }
      const std::vector<float> down = RunDown(kernel, c, 3, q);
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
        const std::vector<float> up = RunUp(reference, c, step);
        const std::vector<int16_t> q = RandomQ(up.size(), 4);
        const std::vector<float> down = RunDown(reference, c, step, q);
        std::vector<float> first_up, first_down;
        for (const Isa isa : test::RunnableIsas(test::kGeneratedIsas)) {
          CAPTURE(Name(isa));
          const BundleKernel kernel(isa, c.shape);
          CHECK(kernel.name() != "reference");
          const std::vector<float> up_here = RunUp(kernel, c, step), down_here = RunDown(kernel, c, step, q);
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

TEST_CASE("bundle kernel: every bit of down is what cpu/bundle_kernel.h promises") {
  for (const DType type : kTypes)
    for (const Isa isa : test::RunnableIsas(test::kGeneratedIsas))
      for (uint32_t seed = 0; seed < 20; ++seed) {
        CAPTURE(Info(type).name);
        CAPTURE(Name(isa));
        CAPTURE(seed);
        const Case c(type, 160, seed);
        const PackedFormat& format = c.shape.down_format();
        const int step = 1 + static_cast<int>(seed % 3);
        const std::vector<int16_t> q = RandomQ((kBundleNeurons + step - 1) / step, seed);
        const std::vector<float> before = test::Random(3).Normals(c.shape.n_outputs());
        const std::vector<float> down = RunDown(BundleKernel(isa, c.shape), c, step, q);
        std::vector<int64_t> dot(160);
        std::vector<float> row(160);
        const auto half = [&](int64_t i) {
          uint16_t bits;
          std::memcpy(&bits, c.bundles.down_scales(1) + 2 * i, 2);
          return HalfToFloat(bits);
        };
        for (size_t i = 0; i < q.size(); ++i) {
          c.bundles.DequantizeDown(kBundleNeurons + step * static_cast<int64_t>(i), row.data());
          for (int64_t e = 0; e < 160; ++e) {
            const float min = format.has_min ? half(c.shape.n_outputs() + e) : 0;
            if (half(e) != 0) dot[e] += std::lrint((double{row[e]} - min) / half(e)) * q[i];
          }
        }
        const float sum = 0x1p-15f * static_cast<float>(std::accumulate(q.begin(), q.end(), 0));
        bool same = true;
        for (int64_t e = 0; e < 160; ++e) {
          float y = std::fma(static_cast<float>(dot[e]) * 0x1p-15f, half(e), before[e]);
          if (format.has_min) y = std::fma(sum, half(c.shape.n_outputs() + e), y);
          same &= down[e] == y;
        }
        CHECK(same);
      }
}

TEST_CASE("bundle kernel: leaving out a neuron with h = 0 changes no bit") {
  for (const DType type : kTypes)
    for (const Isa isa : test::RunnableIsas(test::kGeneratedIsas)) {
      CAPTURE(Info(type).name);
      CAPTURE(Name(isa));
      const Case c(type, 608, 5);
      const BundleKernel kernel(isa, c.shape);
      std::vector<int16_t> all = RandomQ(kBundleNeurons, 6), some;
      for (int i = 0; i < kBundleNeurons; ++i)
        if (i % 3 == 0)
          some.push_back(all[i]);
        else
          all[i] = 0;
      test::CheckSame<float>(RunDown(kernel, c, 3, some), RunDown(kernel, c, 1, all));
    }
}

}  // namespace thermocline
