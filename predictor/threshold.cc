#include "predictor/threshold.h"

#include <cmath>
#include <queue>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {

std::vector<double> SpreadSparsity(const Heat& heat, std::span<const float> sensitivity, double mean) {
  constexpr int kSteps = 256;  // of a layer's neurons
  CHECK(sensitivity.size() == heat.layers.size());
  const size_t n = heat.layers.size();
  struct Step {
    double cost;
    size_t layer;
    int index;
    bool operator<(const Step& other) const {  // the cheapest on top, then the first
      return cost != other.cost ? cost > other.cost : layer > other.layer;
    }
  };
  std::priority_queue<Step> next;
  const auto offer = [&](size_t layer, int index) {
    if (index + 1 > kMaxLayerSparsity * kSteps) return;
    const auto below = [&](int i) {
      return heat.SquaresBelow(static_cast<int>(layer), static_cast<double>(i) / kSteps);
    };
    next.push({std::max(0.f, sensitivity[layer]) * (below(index + 1) - below(index)), layer, index});
  };
  for (size_t layer = 0; layer < n; ++layer) offer(layer, 0);
  std::vector<double> sparsity(n);
  // Squares grow with the share that is left out, so what is cheapest now is part of the cheapest whole.
  for (double left = mean * static_cast<double>(n) * kSteps; left > 0 && !next.empty(); --left) {
    const Step step = next.top();
    next.pop();
    sparsity[step.layer] += std::min(1.0, left) / kSteps;
    offer(step.layer, step.index + 1);
  }
  return sparsity;
}

ThresholdPoint ThresholdFor(const Heat& heat, double mean) {
  if (heat.thresholds.empty())
    throw Error("the .heat file of {} has no thresholds: thermocline profile MODEL --text FILE --max-rise 1%",
                heat.model);
  const std::vector<float> zeros(heat.layers.size());
  ThresholdPoint before{0, 0, zeros, zeros};
  for (const ThresholdPoint& point : heat.thresholds) {
    if (static_cast<float>(mean) <= point.sparsity) {  // as it was when it was written
      const auto t = static_cast<float>((mean - before.sparsity) / (point.sparsity - before.sparsity));
      ThresholdPoint between{static_cast<float>(mean), std::lerp(before.rise, point.rise, t), {}, {}};
      for (size_t i = 0; i < zeros.size(); ++i) {
        between.levels.push_back(std::lerp(before.levels[i], point.levels[i], t));
        between.missed.push_back(std::lerp(before.missed[i], point.missed[i], t));
      }
      return between;
    }
    before = point;
  }
  throw Error(
      "to leave out {:.0f} % of neurons is more than the {:.0f} % that the .heat file of {} has thresholds for; "
      "calibrate more: thermocline profile MODEL --text FILE --thresholds {:.2f}",
      100 * mean, 100 * before.sparsity, heat.model, mean);
}

}  // namespace thermocline
