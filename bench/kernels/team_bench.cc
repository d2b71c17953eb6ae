// What the team adds to an op: time per op whose chunks do nothing, 16 of them, one Run per 200 ops (a token of a small
// model). Bound by a line going from core to core, about 100 ns, a few times per op.
//
//   ninja kernel_bench && bench/kernels/kernel_bench --benchmark_filter=Team
#include <benchmark/benchmark.h>

#include "cpu/team.h"

namespace thermocline {
namespace {

constexpr int kOps = 200;

void TeamOp(benchmark::State& state) {
  Team team(static_cast<int>(state.range(0)));
  const int64_t n_chunks = state.range(1);
  for (auto _ : state)
    team.Run([&](Team::Member& member) {
      for (int op = 0; op < kOps; ++op)
        member.For(n_chunks, 1, [](int64_t begin, int64_t) { benchmark::DoNotOptimize(begin); });
    });
  state.counters["op"] =
      benchmark::Counter(kOps, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}
BENCHMARK(TeamOp)->ArgNames({"threads", "chunks"})->Args({1, 16})->Args({2, 16})->Args({2, 2})->UseRealTime();

// A Run without work: what a step costs besides its ops.
void TeamRun(benchmark::State& state) {
  Team team(static_cast<int>(state.range(0)));
  for (auto _ : state) team.Run([](Team::Member& member) { member.For(1, 1, [](int64_t, int64_t) {}); });
}
BENCHMARK(TeamRun)->ArgName("threads")->Arg(1)->Arg(2)->UseRealTime();

}  // namespace
}  // namespace thermocline
