// Whether the two halves of a split step overlap in time. Runs alone (tests/ctest.cmake), as it needs two free cores.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <thread>

#include "cpu/isa.h"
#include "cpu/topology.h"
#include "gpu/emulated_device.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

// On one thread, with the first n_hot neurons of every layer on a device.
std::unique_ptr<Engine> Start(const TinyOptions& tiny, int n_hot) {
  const GgufFile file = TinyModel(tiny).Open();
  const Model model = Model::FromGguf(file);
  EngineOptions options{.n_ctx = 64, .n_threads = 1};
  if (n_hot > 0) {
    options.device.device =
        std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30}, MakeEmulatedOps());
    options.device.placement = AllOnCpu(model.config);
    options.device.stream.min_rows = kMaxBatchRows + 1;  // which would leave the CPU nothing to compute
    for (LayerPlacement& layer : options.device.placement->layers) layer.n_hot = n_hot;
  }
  return std::make_unique<Engine>(file, model, options);
}

constexpr double kAtOnce = 1.2;
using Clock = std::chrono::steady_clock;

// Seconds of a step of real arithmetic, about a millisecond.
double Step(Engine& engine) {
  constexpr int kRows = 16;
  const int sequence = engine.NewSequence();
  Batch batch;
  for (int i = 0; i < kRows; ++i) batch.push_back({i, sequence, i, RowKind::kPrompt, false});
  const auto begin = Clock::now();
  engine.Step(batch);
  const Clock::duration elapsed = Clock::now() - begin;
  engine.FreeSequence(sequence);
  return std::chrono::duration<double>(elapsed).count();
}

}  // namespace

TEST_CASE("overlap: both halves compute at the same time") {
#ifdef THERMOCLINE_SANITIZED
  return;
#endif
  if (DetectTopology().affinity_cpus < 2 || ChooseIsa() == Isa::kScalar) return;
  constexpr int kHalf = 2048;
  const TinyOptions half{.type = DType::kQ4_0, .n_layer = 3, .n_embd = 512, .n_ff = kHalf};
  TinyOptions whole = half;
  whole.n_ff = 2 * kHalf;
  const auto alone = Start(half, 0), other = Start(half, 0), split = Start(whole, kHalf);
  REQUIRE(UsesDevice(split->placement()));
  // The shortest of many: other programs make a step longer, and none shorter. One half after the other would take
  // twice as long as one alone. Two programs of one half each show whether there are two cores to be had at all.
  double one = INFINITY, both = INFINITY, two_programs = INFINITY;
  const auto give_up = Clock::now() + std::chrono::seconds(60);
  for (int i = 0; i < 20 || (both > kAtOnce * one && Clock::now() < give_up); ++i) {
    one = std::min(one, Step(*alone));
    both = std::min(both, Step(*split));
    double seconds[2];
    std::atomic<int> ready = 0;
    const auto run = [&](Engine& engine, double& taken) {
      for (++ready; ready < 2;) std::this_thread::yield();
      taken = Step(engine);
    };
    std::thread thread([&] { run(*other, seconds[1]); });
    run(*alone, seconds[0]);
    thread.join();
    two_programs = std::min(two_programs, std::max(seconds[0], seconds[1]));
  }
  MESSAGE("one half takes ", 1e3 * one, " ms, both ", 1e3 * both, " ms, two programs ", 1e3 * two_programs, " ms");
  if (two_programs > kAtOnce * one) {
    MESSAGE("skipped: the machine has no two cores to spare");
    return;
  }
  CHECK(both <= kAtOnce * one);
}

}  // namespace thermocline
