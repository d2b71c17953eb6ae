#include "models/quantize.h"

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

constexpr DType kEncoded[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,  DType::kQ8_0,
                              DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};

std::vector<float> RoundTrip(DType type, const std::vector<float>& x, const float* importance = nullptr) {
  const DTypeInfo& info = Info(type);
  std::vector<uint8_t> blocks(x.size() / static_cast<size_t>(info.block) * static_cast<size_t>(info.block_bytes), 0xaa);
  Quantize(type, x.data(), importance, static_cast<int64_t>(x.size()), blocks.data());
  std::vector<float> out(x.size());
  Dequantize(type, blocks.data(), static_cast<int64_t>(x.size()), out.data());
  return out;
}

double SquaredError(const std::vector<float>& x, const std::vector<float>& y, const float* importance = nullptr) {
  double error = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = double{x[i]} - double{y[i]};
    error += d * d * (importance == nullptr ? 1.0 : importance[i]);
  }
  return error;
}

float Half(float x) { return HalfToFloat(FloatToHalf(x)); }

// What one gets without a search: the scale spans the range, codes are the nearest. For the K types with their two
// levels of scales, as ggml's reference quantizers begin.
std::vector<float> Naive(DType type, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  const auto symmetric = [&](size_t begin, size_t n, float d, int lo, int hi) {
    for (size_t i = begin; i < begin + n; ++i)
      y[i] = d == 0 ? 0 : d * std::clamp(std::round(x[i] / d), static_cast<float>(lo), static_cast<float>(hi));
  };
  const auto affine = [&](size_t begin, size_t n, float d, float m, int max_code) {
    for (size_t i = begin; i < begin + n; ++i)
      y[i] = m + (d == 0 ? 0 : d * std::clamp(std::round((x[i] - m) / d), 0.0f, static_cast<float>(max_code)));
  };
  const auto largest = [&](size_t begin, size_t n) {
    float most = 0;
    for (size_t i = begin; i < begin + n; ++i) most = std::max(most, std::abs(x[i]));
    return most;
  };
  const auto range = [&](size_t begin, size_t n) {
    return std::minmax_element(x.begin() + static_cast<std::ptrdiff_t>(begin),
                               x.begin() + static_cast<std::ptrdiff_t>(begin + n));
  };
  const auto block = static_cast<size_t>(Info(type).block);
  for (size_t at = 0; at < x.size(); at += block) {
    switch (type) {
      case DType::kQ4_0: symmetric(at, 32, Half(largest(at, 32) / 7), -8, 7); break;
      case DType::kQ5_0: symmetric(at, 32, Half(largest(at, 32) / 15), -16, 15); break;
      case DType::kQ8_0: symmetric(at, 32, Half(largest(at, 32) / 127), -127, 127); break;
      case DType::kIQ4_NL: {
        const float d = Half(largest(at, 32) / 113);
        for (size_t i = at; i < at + 32; ++i) {
          y[i] = d * static_cast<float>(kIq4Values[0]);
          for (const int8_t value : kIq4Values)
            if (std::abs(x[i] - d * value) < std::abs(x[i] - y[i])) y[i] = d * value;
        }
        break;
      }
      case DType::kQ4_1:
      case DType::kQ5_1: {
        const int max_code = type == DType::kQ4_1 ? 15 : 31;
        const auto [least, most] = range(at, 32);
        affine(at, 32, Half((*most - *least) / static_cast<float>(max_code)), Half(*least), max_code);
        break;
      }
      case DType::kQ4_K:
      case DType::kQ5_K: {
        const int max_code = type == DType::kQ4_K ? 15 : 31;
        std::array<float, 8> scale, min;
        for (size_t g = 0; g < 8; ++g) {
          const auto [least, most] = range(at + 32 * g, 32);
          min[g] = std::max(0.0f, -*least);
          scale[g] = std::max(0.0f, *most + min[g]) / static_cast<float>(max_code);
        }
        const float d = Half(*std::max_element(scale.begin(), scale.end()) / 63);
        const float dmin = Half(*std::max_element(min.begin(), min.end()) / 63);
        for (size_t g = 0; g < 8; ++g) {
          affine(at + 32 * g, 32, d == 0 ? 0 : d * std::round(scale[g] / d),
                 dmin == 0 ? 0 : -dmin * std::round(min[g] / dmin), max_code);
        }
        break;
      }
      default: {
        const float d = Half(largest(at, 256) / 31 / 127);
        for (size_t g = 0; g < 16; ++g) {
          const float s = d == 0 ? 0 : std::min(127.0f, std::round(largest(at + 16 * g, 16) / 31 / d));
          symmetric(at + 16 * g, 16, d * s, -32, 31);
        }
      }
    }
  }
  return y;
}

struct Distribution {
  const char* name;
  std::function<float(std::mt19937&)> draw;
};
const Distribution kDistributions[] = {
    {"normal", [](std::mt19937& r) { return std::normal_distribution<float>(0, 0.05f)(r); }},
    {"heavy tails", [](std::mt19937& r) { return std::pow(std::normal_distribution<float>(0, 0.5f)(r), 3.0f); }},
    {"shifted up", [](std::mt19937& r) { return std::normal_distribution<float>(0.1f, 0.02f)(r); }},
    {"shifted down", [](std::mt19937& r) { return std::normal_distribution<float>(-3, 0.02f)(r); }},
    {"mostly zero", [](std::mt19937& r) { return r() % 16 != 0 ? 0.0f : std::normal_distribution<float>(0, 1)(r); }},
    {"two values", [](std::mt19937& r) { return r() % 2 != 0 ? 0.7f : -0.1f; }},
    {"huge", [](std::mt19937& r) { return std::uniform_real_distribution<float>(-65504, 65504)(r); }},
    {"tiny", [](std::mt19937& r) { return std::normal_distribution<float>(0, 1e-7f)(r); }},
    {"vanishing", [](std::mt19937& r) { return std::normal_distribution<float>(0, 1e-39f)(r); }},
};

}  // namespace

TEST_CASE("quantize: every block errs no more than naive rounding, and on the whole less") {
  std::mt19937 random(1);
  for (const Distribution& distribution : kDistributions) {
    std::vector<float> x(256 * 64);
    for (float& v : x) v = distribution.draw(random);
    for (const DType type : kEncoded) {
      CAPTURE(distribution.name);
      CAPTURE(std::string(Info(type).name));
      const std::vector<float> ours = RoundTrip(type, x), naive = Naive(type, x);
      const auto block = static_cast<std::ptrdiff_t>(Info(type).block);
      double worst = 0, all = 0, all_naive = 0;
      for (auto at = x.begin(); at != x.end(); at += block) {
        const auto part = [&](const std::vector<float>& v) {
          return std::vector<float>(v.begin() + (at - x.begin()), v.begin() + (at - x.begin()) + block);
        };
        const double error = SquaredError(part(x), part(ours)), least = SquaredError(part(x), part(naive));
        all += error;
        all_naive += least;
        // Errors are sums of floats, and where they are nothing but the rounding of the weights they are compared with
        // these.
        const double slack = 1e-5 * least + 1e-12 * SquaredError(part(x), std::vector<float>(part(x).size()));
        if (error > least + slack) worst = std::max(worst, error / least);
      }
      CHECK(worst == 0);
      if (distribution.name == std::string("normal")) CHECK(all < 0.94 * all_naive);
    }
  }
}

TEST_CASE("quantize: errors are weighed by importance") {
  std::mt19937 random(2);
  std::vector<float> x(256 * 64), importance(x.size());
  for (float& v : x) v = std::normal_distribution<float>(0, 0.05f)(random);
  for (size_t i = 0; i < x.size(); ++i) importance[i] = i % 8 == 3 ? 100.0f : 1.0f;
  for (const DType type : kEncoded) {
    CAPTURE(std::string(Info(type).name));
    const std::vector<float> plain = RoundTrip(type, x), weighed = RoundTrip(type, x, importance.data());
    CHECK(SquaredError(x, weighed, importance.data()) < 0.95 * SquaredError(x, plain, importance.data()));
  }
  // Nothing that counts is the same as everything alike.
  const std::vector<float> none(x.size());
  CHECK(RoundTrip(DType::kQ4_0, x, none.data()) == RoundTrip(DType::kQ4_0, x));
}

TEST_CASE("quantize: of what a type can hold nearly nothing is lost") {
  std::mt19937 random(3);
  for (const DType type : kEncoded) {
    CAPTURE(std::string(Info(type).name));
    const auto n = int64_t{256 * 16};
    std::vector<float> held(static_cast<size_t>(n)), other(held.size());
    const std::vector<float> none(held.size());
    Dequantize(type, RandomWeights(type, n, 1, random).data(), n, held.data());
    for (float& v : other) v = std::normal_distribution<float>(0, 1)(random);
    // Not zero: a block that leaves out its outermost code does not show its scale by its range.
    CHECK(SquaredError(held, RoundTrip(type, held)) / SquaredError(held, none) <
          0.4 * SquaredError(other, RoundTrip(type, other)) / SquaredError(other, none));
    const std::vector<float> zeros(256);
    for (const float v : RoundTrip(type, zeros)) CHECK(v == 0);
    const std::vector<float> again = RoundTrip(type, std::vector<float>(256, 0.375f));
    for (const float v : again) CHECK(v == doctest::Approx(0.375f).epsilon(0.01));
  }
}

TEST_CASE("quantize: values of the IQ4_NL table come back, whatever the scale's sign") {
  for (const float scale : {0.0078125f, -0.0078125f}) {
    std::vector<float> held(64);
    for (size_t i = 0; i < held.size(); ++i) held[i] = scale * kIq4Values[i * 5 % 16];
    CHECK(RoundTrip(DType::kIQ4_NL, held) == held);
  }
}

TEST_CASE("quantize: IQ4_NL errs less than Q4_0 on normal weights, with importance and without") {
  std::mt19937 random(5);
  std::vector<float> x(256 * 64), importance(x.size());
  for (float& v : x) v = std::normal_distribution<float>(0, 0.05f)(random);
  for (float& v : importance) v = std::exponential_distribution<float>(1)(random);
  for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())})
    CHECK(SquaredError(x, RoundTrip(DType::kIQ4_NL, x, w), w) <
          0.85 * SquaredError(x, RoundTrip(DType::kQ4_0, x, w), w));
}

TEST_CASE("quantize: extremes stay finite") {
  for (const DType type : kEncoded) {
    CAPTURE(std::string(Info(type).name));
    for (const float large : {kMaxEncodedWeight, -kMaxEncodedWeight}) {
      std::vector<float> x(256, large);
      x[17] = -large;
      x[200] = std::numeric_limits<float>::denorm_min();
      for (const float v : RoundTrip(type, x)) CHECK(std::abs(v) <= 1.1f * kMaxEncodedWeight);
    }
    std::vector<float> outlier(256, 1e-3f);
    outlier[31] = 30000;
    CHECK(RoundTrip(type, outlier)[31] == doctest::Approx(30000).epsilon(0.05));
  }
}

TEST_CASE("quantize: a scale that is multiplied stands in the block") {
  std::mt19937 random(6);
  for (const DType type : kEncoded) {
    if (!HasOneScale(type)) continue;
    CAPTURE(std::string(Info(type).name));
    std::vector<float> x(32), ones(32, 1.0f), before(32), after(32);
    for (float& v : x) v = std::normal_distribution<float>(0, 1)(random);
    std::vector<uint8_t> block(static_cast<size_t>(Info(type).block_bytes)), codes(32);
    BlockGrid grid = ChooseScales(type, x.data(), ones.data(), block.data());
    for (int i = 0; i < 32; ++i)
      codes[static_cast<size_t>(i)] = static_cast<uint8_t>(grid.Code(i, x[static_cast<size_t>(i)]));
    PutCodes(type, codes.data(), block.data());
    Dequantize(type, block.data(), 32, before.data());
    MultiplyScale(1.5f, grid);
    PutScale(grid, block.data());
    Dequantize(type, block.data(), 32, after.data());
    for (size_t i = 0; i < 32; ++i) {
      CHECK(after[i] == doctest::Approx(1.5f * before[i]).epsilon(1e-3));
      CHECK(after[i] == doctest::Approx(grid.Value(static_cast<int>(i), codes[i])).epsilon(1e-4));
    }
    // What F16 does not hold, or would turn all signs, is left as it is.
    const float scale = grid.scale[0];
    for (const float factor : {0.0f, -1.0f, 1e-12f}) MultiplyScale(factor, grid);
    CHECK(grid.scale[0] == scale);
  }
}

TEST_CASE("quantize: chosen codes stand in the block as they were given") {
  std::mt19937 random(4);
  for (const DType type : kEncoded) {
    CAPTURE(std::string(Info(type).name));
    const auto n = static_cast<size_t>(Info(type).block);
    std::vector<float> x(n), ones(n, 1.0f), out(n);
    for (float& v : x) v = std::normal_distribution<float>(0, 1)(random);
    std::vector<uint8_t> block(static_cast<size_t>(Info(type).block_bytes)), codes(n);
    const BlockGrid grid = ChooseScales(type, x.data(), ones.data(), block.data());
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % static_cast<uint32_t>(grid.max_code + 1));
    PutCodes(type, codes.data(), block.data());
    Dequantize(type, block.data(), static_cast<int64_t>(n), out.data());
    for (size_t i = 0; i < n; ++i) {
      const int at = static_cast<int>(i);
      CHECK(out[i] == doctest::Approx(grid.Value(at, codes[i])).epsilon(1e-4).scale(10));
      CHECK(grid.Code(at, out[i]) == codes[i]);
    }
  }
}

}  // namespace thermocline
