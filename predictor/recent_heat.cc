#include "predictor/recent_heat.h"

#include <algorithm>
#include <cmath>

#include "models/check.h"
#include "predictor/heat_order.h"

namespace thermocline {
namespace {

// So many tokens of the profile count beside the recent ones.
constexpr double kProfileTokens = 256;

}  // namespace

void AddFirings(const Firings& firings, double half_life, RecentHeat& recent) {
  if (firings.fired.empty()) return;
  if (recent.fired.empty()) recent.fired.resize(firings.fired.size());
  CHECK(recent.fired.size() == firings.fired.size());
  const double kept = std::exp2(-static_cast<double>(firings.tokens) / half_life);
  recent.tokens = kept * recent.tokens + static_cast<double>(firings.tokens);
  for (size_t layer = 0; layer < recent.fired.size(); ++layer) {
    std::vector<float>& counts = recent.fired[layer];
    counts.resize(firings.fired[layer].size());
    for (size_t i = 0; i < counts.size(); ++i)
      counts[i] = static_cast<float>(kept * counts[i] + firings.fired[layer][i]);
  }
}

Heat WithRecent(const Heat& heat) {
  if (heat.recent.fired.empty()) return heat;
  Heat both = heat;
  const auto n_counted = static_cast<double>(heat.n_counted);
  const double weight = n_counted > 0 ? std::min(kProfileTokens, n_counted) / n_counted : 0;
  both.n_counted = static_cast<int64_t>(std::ceil(weight * n_counted + heat.recent.tokens));
  for (size_t layer = 0; layer < both.layers.size(); ++layer) {
    const std::vector<float>& recent = heat.recent.fired[layer];
    for (double& fired : both.layers[layer].fired) fired *= weight;
    double* fired = both.layers[layer].fired.data() + MiddleTarget(heat) * heat.n_ff;
    for (size_t i = 0; i < recent.size(); ++i) fired[i] += recent[i];
  }
  return both;
}

}  // namespace thermocline
