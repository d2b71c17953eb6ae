// Counts that fade, and what they say should move.
#include "predictor/replan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "predictor/heat_order.h"
#include "predictor/recent_heat.h"

namespace thermocline {
namespace {

Heat Unprofiled(size_t n_layer, int64_t n_ff) {
  Heat heat;
  heat.n_ff = n_ff;
  heat.targets = {0};
  heat.layers.resize(n_layer);
  for (LayerHeat& layer : heat.layers) layer.fired.resize(static_cast<size_t>(n_ff));
  return heat;
}

Heat Profiled(int64_t n_counted, const std::vector<std::vector<double>>& fired) {
  Heat heat = Unprofiled(fired.size(), std::ssize(fired[0]));
  heat.n_counted = n_counted;
  for (size_t i = 0; i < fired.size(); ++i) heat.layers[i].fired = fired[i];
  return heat;
}

}  // namespace

TEST_CASE("recent heat: counts of a half-life ago weigh half") {
  RecentHeat recent;
  AddFirings({100, {{100, 50, 0}}}, 100, recent);
  CHECK(recent.tokens == 100);
  AddFirings({100, {{0, 50, 100}}}, 100, recent);
  CHECK(recent.tokens == doctest::Approx(150));
  CHECK(recent.fired[0] == std::vector<float>{50, 75, 100});
  AddFirings({0, {}}, 100, recent);
  CHECK(recent.tokens == doctest::Approx(150));
}

TEST_CASE("recent heat: a count never exceeds the tokens, whatever is added") {
  std::mt19937 random(1);
  RecentHeat recent;
  for (int i = 0; i < 1000; ++i) {
    const auto n = static_cast<uint32_t>(random() % 400);
    AddFirings({n, {{n, n / 2}}}, kHeatHalfLife, recent);
    CHECK(recent.fired[0][0] <= recent.tokens * (1 + 1e-5));
  }
}

TEST_CASE("recent heat: few tokens of the profile count beside the recent ones") {
  Heat heat = Profiled(10000, {{9000, 1000, 0, 100}});
  CHECK(ProfileCounts(WithRecent(heat), 0)[0] == 9000);  // nothing is recent
  heat.recent = {500, {{0, 400, 450, 0}}};
  const Heat both = WithRecent(heat);
  const auto counts = ProfileCounts(both, 0);
  CHECK(counts[2] > counts[1]);
  CHECK(counts[1] > counts[0]);
  CHECK(counts[0] > counts[3]);
  CHECK(counts[3] > 0);
  CHECK(both.n_counted >= 500);
  CHECK(both.n_counted < 1000);
  Heat alone = Unprofiled(1, 4);
  alone.recent = heat.recent;
  CHECK_FALSE(alone.profiled());
  CHECK(ProfileCounts(ProfiledOrRecent(alone), 0)[2] == 450);
  CHECK(ProfileCounts(ProfiledOrRecent(heat), 0)[0] == 9000);
}

TEST_CASE("replan: what moves is the hottest, by how much it saves") {
  // Of layer 0 the second half fires, of layer 1 the second half a little more, of layer 2 the first half.
  std::vector<std::vector<double>> fired(3, std::vector<double>(256));
  for (int i = 0; i < 256; ++i) {
    fired[0][i] = i < 128 ? 1 : 9;
    fired[1][i] = i < 128 ? 4 : 5;
    fired[2][i] = i < 128 ? 9 : 1;
  }
  const Heat heat = Profiled(10, fired);
  Placement placement{.layers = {{.n_hot = 128}, {.n_hot = 128}, {.n_hot = 128}}};
  const CpuReads reads{1000, {10, 10, 10}};
  const Replan plan = PlanMoves(placement, heat, {32, 32, 32}, reads);
  CHECK(plan.hits == doctest::Approx((1 + 4 + 9) / 29.));
  CHECK(plan.best_hits == doctest::Approx((9 + 5 + 9) / 29.));
  REQUIRE(plan.moves.size() == 2);
  CHECK(plan.moves[0].layer == 0);
  CHECK(plan.moves[0].saved_bytes == doctest::Approx(128 * 0.8 * 10));
  CHECK(plan.moves[1].layer == 1);
  CHECK(plan.gain == doctest::Approx((128 * 0.8 * 10 + 128 * 0.1 * 10) / (1000 + 128 * 10 * (0.9 + 0.5 + 0.1))));
  CHECK((*plan.moves[0].order)[0] == 128);
  CHECK(plan.moves[0].order->unit() == 32);
  // Once they have moved there is nothing left, and where all neurons are read nothing is saved.
  placement.orders = {plan.moves[0].order, plan.moves[1].order, nullptr};
  const Replan again = PlanMoves(placement, heat, {32, 32, 32}, reads);
  CHECK(again.hits == doctest::Approx(plan.best_hits));
  CHECK(again.moves.empty());
  CHECK(again.gain == 0);
  placement.orders.clear();
  CHECK(PlanMoves(placement, heat, {32, 32, 32}, {1000, {0, 0, 0}}).moves.empty());
  CHECK(PlanMoves(placement, Profiled(0, fired), {32, 32, 32}, reads).moves.empty());
}

TEST_CASE("replan: neurons that move together are as hot as their mean") {
  std::vector<double> fired(128);
  for (int i = 0; i < 128; i += 2) fired[i] = 10;
  const Heat heat = Profiled(10, {fired});
  const Placement placement{.layers = {{.n_hot = 64}}};
  CHECK(PlanMoves(placement, heat, {32}, {0, {1}}).moves.empty());
  const Replan one = PlanMoves(placement, heat, {1}, {0, {1}});
  CHECK(one.hits == doctest::Approx(0.5));
  CHECK(one.best_hits == doctest::Approx(1));
  CHECK(one.gain == doctest::Approx(1));
}

}  // namespace thermocline
