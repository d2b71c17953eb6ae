#include "predictor/placement.h"

#include <doctest/doctest.h>

namespace thermocline {

TEST_CASE("placement: what is no placement of a model is told from one") {
  ModelConfig config{};
  config.n_layer = 3;
  config.n_ff = 160;
  const Placement on_cpu = AllOnCpu(config);
  CHECK(IsPlacementOf(on_cpu, config));
  const auto with = [&](auto change) {
    Placement placement = on_cpu;
    change(placement);
    return IsPlacementOf(placement, config);
  };
  for (const int64_t n_hot : {0, 64, 128, 160}) CHECK(with([&](Placement& p) { p.layers[1].n_hot = n_hot; }));
  for (const int64_t n_hot : {-64, 32, 100, 161, 192}) CHECK(!with([&](Placement& p) { p.layers[1].n_hot = n_hot; }));
  CHECK(!with([](Placement& p) { p.layers.pop_back(); }));
  CHECK(!with([](Placement& p) { p.layers[2].kv = Memory::kDevice; }));
  CHECK(with([](Placement& p) { p.layers[2].kv = p.layers[2].attention = Memory::kDevice; }));
  CHECK(with([](Placement& p) { p.layers[2].attention = p.head = Memory::kDevice; }));
}

}  // namespace thermocline
