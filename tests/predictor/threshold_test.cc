#include "predictor/threshold.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "models/error.h"

namespace thermocline {
namespace {

// Layers whose activations are spread evenly over octaves around different sizes.
Heat SomeHeat(int n_layer, uint32_t seed) {
  std::mt19937 random(seed);
  Heat heat;
  heat.model = "tiny";
  heat.n_ff = 64;
  for (int i = 0; i < n_layer; ++i) {
    LayerHeat& layer = heat.layers.emplace_back();
    layer.histogram.assign(kHeatBins, 0);
    layer.histogram[0] = random() % 50;
    const auto begin = HeatBin(std::ldexp(1.f, -static_cast<int>(4 + random() % 4)));
    for (int bin = begin; bin < begin + 80; ++bin) layer.histogram[bin] = random() % 20;
  }
  return heat;
}

double Cost(const Heat& heat, const std::vector<float>& sensitivity, const std::vector<double>& sparsity) {
  double cost = 0;
  for (size_t i = 0; i < sparsity.size(); ++i)
    cost += sensitivity[i] * heat.SquaresBelow(static_cast<int>(i), sparsity[i]);
  return cost;
}

}  // namespace

TEST_CASE("threshold: the spread has its mean and no other on a grid costs less") {
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    const Heat heat = SomeHeat(3, seed);
    const std::vector<float> sensitivity = {0.1f, 0.5f, 2};
    for (const double mean : {0.1, 0.3, 0.5, 0.8}) {
      CAPTURE(mean);
      const std::vector<double> spread = SpreadSparsity(heat, sensitivity, mean);
      CHECK((spread[0] + spread[1] + spread[2]) / 3 == doctest::Approx(mean));
      const double cost = Cost(heat, sensitivity, spread);
      constexpr int kGrid = 50;
      for (int a = 0; a < kGrid; ++a)
        for (int b = 0; b < kGrid; ++b) {
          const std::vector<double> other = {1.0 * a / kGrid, 1.0 * b / kGrid, 3 * mean - 1.0 * (a + b) / kGrid};
          if (other[2] < 0 || *std::max_element(other.begin(), other.end()) > kMaxLayerSparsity) continue;
          // The steps of the spread are finite, too.
          if (Cost(heat, sensitivity, other) < cost * 0.99 - 1e-9) CHECK(Cost(heat, sensitivity, other) >= cost);
        }
    }
  }
}

TEST_CASE("threshold: what no layer may leave out is not left out") {
  const Heat heat = SomeHeat(2, 3);
  const std::vector<float> sensitivity = {1, 1};
  for (const double share : SpreadSparsity(heat, sensitivity, 1)) {
    CHECK(share <= kMaxLayerSparsity);
    CHECK(share > kMaxLayerSparsity - 0.01);
  }
  CHECK(SpreadSparsity(heat, sensitivity, 0) == std::vector<double>{0, 0});
}

TEST_CASE("threshold: settings between those that are calibrated lie on a line") {
  Heat heat = SomeHeat(2, 1);
  CHECK_THROWS_WITH_AS(ThresholdFor(heat, 0.1), doctest::Contains("has no thresholds"), Error);
  heat.thresholds = {{0.2f, 0.01f, {0.1f, 0.2f}, {0.01f, 0.02f}}, {0.4f, 0.05f, {0.3f, 0.2f}, {0.05f, 0.02f}}};
  for (const ThresholdPoint& point : heat.thresholds) {
    const ThresholdPoint same = ThresholdFor(heat, point.sparsity);
    CHECK(same.levels == point.levels);
    CHECK(same.missed == point.missed);
    CHECK(same.rise == point.rise);
  }
  const ThresholdPoint low = ThresholdFor(heat, 0.1), between = ThresholdFor(heat, 0.3);
  CHECK(low.levels[1] == doctest::Approx(0.1));
  CHECK(low.rise == doctest::Approx(0.005));
  CHECK(between.levels[0] == doctest::Approx(0.2));
  CHECK(between.missed[0] == doctest::Approx(0.03));
  CHECK(between.sparsity == doctest::Approx(0.3));
  heat.thresholds.push_back({0.7f, 0.2f, {0.5f, 0.2f}, {0.1f, 0.02f}});
  CHECK(ThresholdFor(heat, 0.7).levels == heat.thresholds.back().levels);  // 0.7f is less than 0.7
  heat.thresholds.pop_back();
  CHECK_THROWS_WITH_AS(ThresholdFor(heat, 0.5), doctest::Contains("50 % of neurons is more than the 40 %"), Error);
}

}  // namespace thermocline
