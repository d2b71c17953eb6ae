// The search of models/quantize_fit.cc: scales around the one that brings the largest weight to an end of the table,
// each with the values it rounds to; with these given, the best scale is a weighted least-squares solution.
#include "models/value_fit.h"

#include <algorithm>
#include <cmath>

#include "models/check.h"
#include "models/fit_lanes.h"

namespace thermocline {
namespace {

// The nearest values: the least one and all steps up to them.
Lanes Nearest(const ValueTable& table, Lanes x) {
  Lanes value = All(table.values[0]);
  for (size_t i = 0; i < table.middles.size(); ++i)
    value = x > All(table.middles[i]) ? All(table.values[i + 1]) : value;
  return value;
}

// Least squares for x ~ scale * value: the error is smaller by gain than that of zeros.
struct Fit {
  float scale, gain;
};
Fit Solve(const WeightGroup& group, const ValueTable& table, float inverse) {
  Lanes xv = All(0), vv = All(0);
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i), w = Load(group.w + i);
    const Lanes v = Nearest(table, x * All(inverse));
    xv += w * x * v;
    vv += w * v * v;
  }
  const float sum_xv = Sum(xv), sum_vv = Sum(vv);
  if (!(sum_vv > 0)) return {0, 0};
  return {sum_xv / sum_vv, sum_xv / sum_vv * sum_xv};
}

}  // namespace

const ValueTable& Iq4Table() {
  static const ValueTable table = [] {
    ValueTable result;
    std::copy(kIq4Values.begin(), kIq4Values.end(), result.values.begin());
    for (size_t i = 0; i < result.middles.size(); ++i)
      result.middles[i] = (result.values[i] + result.values[i + 1]) / 2;
    return result;
  }();
  return table;
}

float FitTable(const WeightGroup& group, const ValueTable& table) {
  CHECK(group.n % 4 == 0);
  float largest = 0;
  for (int i = 0; i < group.n; ++i) largest = std::max(largest, std::abs(group.x[i]));
  if (largest < kLeastScale) return 0;
  // The largest weight would become 0.85 to 1.35 times the table's last value; past the ends it is cut to spare others.
  constexpr int kSteps = 15;
  Fit best = {0, 0};
  for (const int sign : {-1, 1}) {
    for (int i = 0; i < kSteps; ++i) {
      const float end = table.values.back() * (0.85f + 0.035f * static_cast<float>(i));
      const Fit fit = Solve(group, table, static_cast<float>(sign) * end / largest);
      if (fit.gain > best.gain) best = fit;
    }
  }
  for (int i = 0; i < 3 && best.scale != 0; ++i) {
    const Fit fit = Solve(group, table, 1 / best.scale);
    if (!(fit.gain > best.gain)) break;
    best = fit;
  }
  return best.scale;
}

double TableError(const WeightGroup& group, const ValueTable& table, float scale) {
  const Lanes inverse = All(scale == 0 ? 0 : 1 / scale), step = All(scale);
  Lanes error = All(0);
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i);
    const Lanes d = x - Nearest(table, x * inverse) * step;
    error += Load(group.w + i) * d * d;
  }
  return Sum(error);
}

}  // namespace thermocline
