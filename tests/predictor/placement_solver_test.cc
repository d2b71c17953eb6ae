#include "predictor/placement_solver.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <random>

#include "models/error.h"

namespace thermocline {
namespace {

// A machine whose device is 1 to 8 times as fast and holds a part of the model.
PlacementProblem RandomProblem(int n_layers, int n_blocks, std::mt19937& random) {
  const auto uniform = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  const double faster = uniform(1, 8);
  const auto part = [&](double cpu_s, int64_t bytes) { return PartCost{cpu_s, cpu_s / faster, bytes}; };
  PlacementProblem problem;
  problem.n_ff = int64_t{n_blocks} * kHotBlock - (random() % 2 ? 32 : 0);
  const double attention = uniform(1e-4, 1e-3);
  for (int l = 0; l < n_layers; ++l) {
    LayerCost& layer = problem.layers.emplace_back();
    layer.attention = part(attention, 20 << 20);
    layer.kv = part(uniform(1e-5, 1e-3), static_cast<int64_t>(random() % 30) << 20);
    layer.ffn = {uniform(0, 2e-5), uniform(0, 5e-5), 0};
    std::vector<double> times;
    for (int b = 0; b < n_blocks; ++b) times.push_back(uniform(1e-5, 4e-4));
    std::sort(times.begin(), times.end(), std::greater<>());
    for (const double time : times) layer.neurons.push_back(part(time, 8 << 20));
    for (PartCost& block : layer.neurons) block.device_s = 2e-4 / faster;
    if (problem.n_ff % kHotBlock) {
      layer.neurons.back() = {times.back() / 2, 1e-4 / faster, 4 << 20};
    }
  }
  problem.head = part(uniform(1e-4, 2e-3), 40 << 20);
  problem.merge_s = uniform(0, 2e-4);
  problem.handover_s = problem.merge_s / 2;
  problem.cpu_bytes = INT64_MAX;
  const int64_t all = problem.head.bytes + n_layers * ((20 + 8 * n_blocks + 15) << 20);
  problem.device_bytes = static_cast<int64_t>(uniform(0, 1.1) * static_cast<double>(all));
  if (random() % 3 == 0) problem.cpu_bytes = all - problem.device_bytes + (60 << 20);
  return problem;
}

// The fastest of all placements; HUGE_VAL: none fits.
double BruteForce(const PlacementProblem& problem, bool layers_only) {
  double least = HUGE_VAL;
  Placement placement{.layers = std::vector<LayerPlacement>(problem.layers.size())};
  const std::function<void(size_t)> choose = [&](size_t l) {
    if (l == problem.layers.size()) {
      for (const Memory head : {Memory::kCpu, Memory::kDevice}) {
        placement.head = head;
        if (Fits(problem, placement)) least = std::min(least, SecondsPerToken(problem, placement));
      }
      return;
    }
    for (size_t n = 0; n <= problem.layers[l].neurons.size(); ++n)
      for (const Memory attention : {Memory::kCpu, Memory::kDevice})
        for (const Memory kv : {Memory::kCpu, Memory::kDevice}) {
          if (kv == Memory::kDevice && attention == Memory::kCpu) continue;
          const size_t whole = attention == Memory::kDevice ? problem.layers[l].neurons.size() : 0;
          if (layers_only && (kv != attention || n != whole)) continue;
          placement.layers[l] = {std::min(static_cast<int64_t>(n) * kHotBlock, problem.n_ff), attention, kv};
          choose(l + 1);
        }
  };
  choose(0);
  return least;
}

// 32 layers of 11008 neurons at 4 bits, some neurons far hotter than others: a fifth of the time the CPU would take.
PlacementProblem LargeProblem(double device_gib, double merge_s) {
  constexpr double kCpu = 50e9, kDevice = 400e9;
  constexpr int64_t kMatrix = 4096 * 4096 * 9 / 16, kBlock = int64_t{64} * 3 * 4096 * 9 / 16;
  const auto part = [](int64_t bytes, double share) {
    return PartCost{share * static_cast<double>(bytes) / kCpu, static_cast<double>(bytes) / kDevice, bytes};
  };
  PlacementProblem problem;
  problem.n_ff = 11008;
  for (int l = 0; l < 32; ++l) {
    LayerCost& layer = problem.layers.emplace_back();
    layer.attention = part(4 * kMatrix, 1);
    layer.kv = part(4096 * 4096 * 4, 1);
    layer.ffn = {5e-6, 1e-5, 0};
    for (int b = 0; b < 172; ++b) layer.neurons.push_back(part(kBlock, 0.33 + 0.67 * std::exp(-b / (10. + l))));
  }
  problem.head = part(int64_t{32000} * 4096 * 17 / 16, 1);
  problem.merge_s = merge_s;
  problem.handover_s = merge_s / 2;
  problem.device_bytes = static_cast<int64_t>(device_gib * 0x1p30);
  return problem;
}

}  // namespace

TEST_CASE("placement solver: no placement is faster, on 50 small machines") {
  std::mt19937 random(7);
  int n_split = 0, n_infeasible = 0;
  for (int i = 0; i < 50; ++i) {
    CAPTURE(i);
    const PlacementProblem problem = i % 2 ? RandomProblem(2, 5, random) : RandomProblem(3, 3, random);
    for (const bool layers_only : {false, true}) {
      CAPTURE(layers_only);
      const double least = BruteForce(problem, layers_only);
      if (least == HUGE_VAL) {
        ++n_infeasible;
        CHECK_THROWS_WITH_AS(SolvePlacement(problem, {.layers_only = layers_only, .gap = 0}),
                             doctest::Contains("both memories"), Error);
        continue;
      }
      const SolvedPlacement solved = SolvePlacement(problem, {.layers_only = layers_only, .gap = 0});
      CHECK(solved.seconds == doctest::Approx(least).epsilon(1e-6));
      CHECK(solved.bound <= least * (1 + 1e-6));
      CHECK(Fits(problem, solved.placement));
      CHECK(solved.seconds == SecondsPerToken(problem, solved.placement));
      for (const LayerPlacement& layer : solved.placement.layers)
        n_split += layer.n_hot > 0 && layer.n_hot < problem.n_ff;
    }
  }
  CHECK(n_split > 20);  // the cases are not all trivial
  CHECK(n_infeasible < 20);
}

TEST_CASE("placement solver: 32 layers of 172 blocks in time") {
  const PlacementProblem problem = LargeProblem(2, 2e-5);
  const std::clock_t start = std::clock();  // of this process alone: others may compute beside it
  const SolvedPlacement solved = SolvePlacement(problem, {});
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
#ifndef THERMOCLINE_SANITIZED
  CHECK(seconds < 5);
#endif
  CAPTURE(seconds);
  CHECK(Fits(problem, solved.placement));
  CHECK(solved.seconds < 1.01 * solved.bound);
  const SolvedPlacement layers = SolvePlacement(problem, {.layers_only = true});
  CHECK(solved.seconds < 0.95 * layers.seconds);
  for (const LayerPlacement& layer : layers.placement.layers) {
    CHECK((layer.n_hot == problem.n_ff) == (layer.attention == Memory::kDevice));
    CHECK(layer.kv == layer.attention);
  }
}

TEST_CASE("placement solver: with room for everything and a fast device, all is there; without, nothing is") {
  PlacementProblem problem = LargeProblem(100, 1e-4);
  const SolvedPlacement all = SolvePlacement(problem, {});
  CHECK(all.placement.head == Memory::kDevice);
  for (const LayerPlacement& layer : all.placement.layers) {
    CHECK(layer.n_hot == problem.n_ff);
    CHECK(layer.kv == Memory::kDevice);
  }
  problem.device_bytes = 0;
  const SolvedPlacement none = SolvePlacement(problem, {});
  CHECK(BytesOnDevice(problem, none.placement) == 0);
  CHECK(none.seconds > all.seconds);
}

}  // namespace thermocline
