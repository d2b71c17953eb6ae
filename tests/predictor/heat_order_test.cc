#include "predictor/heat_order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "predictor/placement.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

struct Subject {
  GgufFile file;
  Model model;
  Heat heat;

  explicit Subject(const TinyOptions& options) : file(TinyModel(options).Open()), model(Model::FromGguf(file)) {
    heat.n_ff = options.n_ff;
    heat.n_counted = 1000;
    heat.targets = {0};
    std::mt19937 random(options.seed);
    for (int i = 0; i < options.n_layer; ++i) {
      LayerHeat& layer = heat.layers.emplace_back();
      for (int j = 0; j < options.n_ff; ++j) layer.fired.push_back(random() % 1001);
    }
  }
};

}  // namespace

TEST_CASE("heat order: neurons by their counts, or as many as share a block by their sum; blocks never get hotter") {
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kF16})
    for (const HeatOrder by : {HeatOrder::kBlocks, HeatOrder::kNeurons}) {
      CAPTURE(Info(type).name);
      CAPTURE(Name(by));
      const Subject subject({.type = type, .n_embd = 256, .n_ff = 1024});
      const HotNeurons hot = ByHeat(subject.model, subject.heat, by);
      REQUIRE(hot.orders.size() == 2);
      REQUIRE(hot.heat.size() == 2);
      for (int layer = 0; layer < 2; ++layer) {
        const NeuronOrder& order = *hot.orders[layer];
        const std::vector<double>& fired = subject.heat.layers[layer].fired;
        CHECK(order.unit() == (by == HeatOrder::kNeurons ? 1 : Info(type).block));
        CHECK(order.size() == 1024);
        const auto sum = [&](int64_t unit) {
          double sum = 0;
          for (int i = 0; i < order.unit(); ++i) sum += fired[order[unit * order.unit() + i]];
          return sum;
        };
        for (int64_t unit = 1; unit < 1024 / order.unit(); ++unit) CHECK(sum(unit) <= sum(unit - 1));
        const std::vector<double>& heat = hot.heat[layer];
        CHECK(heat.size() == 1024 / kHotBlock);
        CHECK(std::is_sorted(heat.rbegin(), heat.rend()));
        const double mean = std::accumulate(fired.begin(), fired.end(), 0.0) / 1024 / 1000;
        CHECK(std::accumulate(heat.begin(), heat.end(), 0.0) / static_cast<double>(heat.size()) ==
              doctest::Approx(mean));
        if (order.unit() == 1) CHECK(heat.front() > 0.9);
        if (order.unit() == 1) CHECK(heat.back() < 0.1);
      }
    }
}

TEST_CASE("heat order: a last block that is shorter, and neurons alike, stay at their end") {
  Subject subject({.type = DType::kQ4_0, .n_ff = 160});
  for (LayerHeat& layer : subject.heat.layers) std::fill(layer.fired.begin(), layer.fired.end(), 500);
  for (const HeatOrder by : {HeatOrder::kBlocks, HeatOrder::kNeurons}) {
    const HotNeurons hot = ByHeat(subject.model, subject.heat, by);
    for (int i = 0; i < 160; ++i) CHECK((*hot.orders[0])[i] == i);
    CHECK(hot.heat[0] == std::vector<double>{0.5, 0.5, 0.5});
  }
  CHECK(BlockHeat(subject.heat, {})[1] == std::vector<double>{0.5, 0.5, 0.5});
}

TEST_CASE("heat order: what costs nothing") {
  CHECK(FreeOrder(Subject({.type = DType::kQ4_0}).model) == HeatOrder::kBlocks);
  CHECK(FreeOrder(Subject({.type = DType::kQ8_0}).model) == HeatOrder::kNeurons);
  CHECK(FreeOrder(Subject({.type = DType::kF16}).model) == HeatOrder::kNeurons);
  CHECK(FindHeatOrder("blocks") == HeatOrder::kBlocks);
  CHECK(FindHeatOrder("neurons") == HeatOrder::kNeurons);
  CHECK_FALSE(FindHeatOrder("layers"));
}

}  // namespace thermocline
