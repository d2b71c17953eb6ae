#include "predictor/replan.h"

#include <algorithm>
#include <numeric>

#include "predictor/heat_order.h"

namespace thermocline {
namespace {

double SumOfFirst(int64_t n, std::span<const double> counts, const NeuronOrder* order) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += counts[order ? (*order)[i] : i];
  return sum;
}

}  // namespace

Replan PlanMoves(const Placement& placement, const Heat& heat, const std::vector<int>& units, const CpuReads& reads) {
  const auto tokens = static_cast<double>(heat.n_counted);
  Replan plan;
  double fired = 0, hot = 0, best_hot = 0, read = reads.always, saved = 0;
  for (size_t i = 0; i < placement.layers.size() && tokens > 0; ++i) {
    const int64_t n_hot = placement.layers[i].n_hot;
    const std::span<const double> counts = ProfileCounts(heat, static_cast<int>(i));
    const NeuronOrder* now = placement.orders.empty() ? nullptr : placement.orders[i].get();
    const auto best = OrderByCounts(counts, units[i]);
    const double all = std::accumulate(counts.begin(), counts.end(), 0.0);
    const double here = SumOfFirst(n_hot, counts, now);
    const double there = std::max(here, SumOfFirst(n_hot, counts, best.get()));
    fired += all;
    hot += here;
    best_hot += there;
    const double per_firing = reads.neuron_bytes[i] / tokens;
    read += (all - here) * per_firing;
    saved += (there - here) * per_firing;
    if (there > here && per_firing > 0) plan.moves.push_back({static_cast<int>(i), best, (there - here) * per_firing});
  }
  if (fired > 0) {
    plan.hits = hot / fired;
    plan.best_hits = best_hot / fired;
  }
  if (read > 0) plan.gain = saved / read;
  std::stable_sort(plan.moves.begin(), plan.moves.end(),
                   [](const LayerMove& a, const LayerMove& b) { return a.saved_bytes > b.saved_bytes; });
  return plan;
}

}  // namespace thermocline
