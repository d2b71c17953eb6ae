#include "runtime/planner.h"

#include <doctest/doctest.h>

#include "gpu/emulated_device.h"
#include "runtime/emulated_ops.h"
#include "tests/models/tiny_model.h"

namespace thermocline {

TEST_CASE("planner: what a device cannot hold is planned for the CPU, and takes the time that it takes there") {
  const GgufFile file = TinyModel({.type = DType::kQ4_0, .n_ff = 512}).Open();
  const Model model = Model::FromGguf(file);
  constexpr DeviceRates kFast{.bytes_per_s = 1e14, .launch_s = 0, .transfer_s = 0, .transfer_bytes_per_s = 1e14};
  double seconds[2];
  for (const bool f16_only : {false, true}) {
    EmulatedDevice device({.budget_bytes = int64_t{1} << 30, .f16_kv_only = f16_only}, MakeEmulatedOps());
    const Plans plans = MakePlans({.model = model,
                                   .heat = nullptr,
                                   .mode = FfnMode::kDense,
                                   .kv_types = {DType::kQ8_0, DType::kQ8_0},
                                   .n_ctx = 200,
                                   .n_threads = 1,
                                   .cpu_bytes = int64_t{1} << 30,
                                   .device = &device,
                                   .rates = kFast});
    const Plan& plan = plans.all[0];
    for (const LayerPlacement& layer : plan.solved.placement.layers) {
      CHECK(layer.n_hot == 512);
      CHECK(layer.kv == (f16_only ? Memory::kCpu : Memory::kDevice));
    }
    CHECK(plan.device_bytes + plan.step_bytes <= device.free_bytes());
    seconds[f16_only] = plan.solved.seconds;
  }
  CHECK(seconds[true] > 2 * seconds[false]);  // attention is all that takes any
}

}  // namespace thermocline
