// What tests of kernels share: which ISAs run here, random data, comparison with the worst element reported.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "cpu/isa.h"

namespace thermocline::test {

// Which of `all` this machine can run; the others are reported as skipped. Generated code knows kGeneratedIsas.
inline constexpr Isa kGeneratedIsas[] = {Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512};
inline constexpr Isa kCompiledIsas[] = {Isa::kAvx2, Isa::kAvx512};
inline std::vector<Isa> RunnableIsas(std::span<const Isa> all = kCompiledIsas) {
  std::vector<Isa> isas;
  for (const Isa isa : all) {
    if (CanRun(isa)) {
      isas.push_back(isa);
    } else {
      MESSAGE("SKIPPED: this machine cannot run " << Name(isa));
    }
  }
  return isas;
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  float Normal(float deviation = 1) { return std::normal_distribution<float>(0, deviation)(engine_); }
  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  std::vector<float> Normals(size_t n, float deviation = 1) {
    std::vector<float> values(n);
    for (float& value : values) value = Normal(deviation);
    return values;
  }

 private:
  std::mt19937_64 engine_;
};

inline constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

// |actual[i] - expected[i]| <= tolerance(i) for all i; NaN and infinities must be the same. Reports the worst element.
template <typename Tolerance>
void CheckNear(std::span<const float> actual, std::span<const float> expected, const Tolerance& tolerance) {
  REQUIRE(actual.size() == expected.size());
  size_t worst = 0;
  double worst_excess = -1;
  for (size_t i = 0; i < actual.size(); ++i) {
    double excess = 0;
    if (!(actual[i] == expected[i] || (std::isnan(actual[i]) && std::isnan(expected[i])))) {
      excess = std::fabs(double{actual[i]} - expected[i]) / tolerance(i);
      if (!(excess >= 0)) excess = std::numeric_limits<double>::infinity();
    }
    if (excess > worst_excess) worst = i, worst_excess = excess;
  }
  if (actual.empty()) return;
  CAPTURE(worst);
  CAPTURE(actual[worst]);
  CAPTURE(expected[worst]);
  CHECK(worst_excess <= 1);
}

// The same bits.
template <typename T>
void CheckSame(std::span<const T> actual, std::span<const T> expected) {
  REQUIRE(actual.size() == expected.size());
  size_t n_different = 0, first = 0;
  for (size_t i = actual.size(); i-- > 0;)
    if (std::memcmp(&actual[i], &expected[i], sizeof(T)) != 0) ++n_different, first = i;
  CAPTURE(first);
  CHECK(n_different == 0);
}

}  // namespace thermocline::test
