// The packed product, one thread. Few rows over 512 MB of panels, so that every weight comes from memory: GB/s of
// weights, bound by the read bandwidth of one core (`thermocline machine`). 512 rows over panels that stay in L2:
// GOP/s, 2 per weight and row however many planes, and the part of what one thread reaches with nothing but products in
// registers; the bound is all of it, over the planes.
//
//   ninja kernel_bench && bench/kernels/kernel_bench --benchmark_filter=Linear
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "cpu/activations.h"
#include "cpu/buffer.h"
#include "cpu/linear.h"
#include "cpu/topology.h"
#include "cpu/vector_ops.h"

namespace thermocline {
namespace {

constexpr int64_t kK = 2048;
constexpr int64_t kPanelsInL2 = 16;
constexpr float kNoGroup = std::numeric_limits<float>::infinity();
constexpr int64_t kMemoryBytes = int64_t{512} << 20;

Buffer Activations(const VectorOps& ops, int64_t m, float large_group) {
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  Buffer rows(m * ActivationRowBytes(kK), "activations");
  std::vector<float> x(kK);
  for (int64_t row = 0; row < m; ++row) {
    for (float& value : x) value = normal(engine);
    ops.quantize(x.data(), kK, large_group, rows.data() + row * ActivationRowBytes(kK));
  }
  return rows;
}

// What one thread reaches, operations/s.
double PeakOf(Isa isa, PromptForm form) {
  static std::map<Isa, Peak> peaks;
  if (!peaks.contains(isa)) peaks[isa] = MeasurePeak(isa, 1);
  return form == PromptForm::kBf16 ? peaks[isa].bf16 : peaks[isa].int8;
}

void RunLinear(benchmark::State& state, Isa isa, const PackedFormat& format, int64_t m, float large_group,
               int64_t n_panels) {
  const LinearKernel kernel(isa, format);
  // Zero codes and scales take as long as any others.
  PackedMatrix packed(format.source, n_panels * kPanelRows, kK);
  for (int64_t i = 0; i < packed.bytes(); i += 4096) const_cast<uint8_t*>(packed.panel(0))[i] = 1;
  const Buffer x = Activations(VectorOpsFor(isa), m, large_group);
  const Buffer y(m * n_panels * kPanelRows * static_cast<int64_t>(sizeof(float)), "products");
  const LinearArgs args{packed.panel(0),
                        x.data(),
                        ActivationRowBytes(kK),
                        y.as<float>(),
                        n_panels * kPanelRows * static_cast<int64_t>(sizeof(float)),
                        n_panels,
                        packed.n_blocks(),
                        0};
  const PromptForm form = PromptFormFor(isa, large_group);
  const double peak = PeakOf(isa, form);
  for (auto _ : state) {
    kernel.Run(args, m, form);
    benchmark::ClobberMemory();
  }
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = benchmark::Counter(packed.bytes() * 1e-9, rate);
  const double ops = 2.0 * static_cast<double>(m * kK * n_panels * kPanelRows);
  state.counters["GOP/s"] = benchmark::Counter(1e-9 * ops, rate);
  state.counters["of_peak"] = benchmark::Counter(ops / peak, rate);
}

const bool kRegistered = [] {
  for (const PackedFormat& format : PackedFormats())
    for (const Isa isa : {Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512}) {
      if (!CanRun(isa)) continue;
      const std::string suffix = std::string("/") + format.name + "/" + std::string(Name(isa));
      const int64_t in_memory = kMemoryBytes / PackedMatrix::BytesFor(format.source, kPanelRows, kK);
      for (const int m : {1, 4, 16})
        benchmark::RegisterBenchmark(
            fmt::format("LinearDecode{}/M{}", suffix, m).c_str(),
            [=, &format](benchmark::State& state) { RunLinear(state, isa, format, m, kAllGroups, in_memory); });
      for (const auto& [name, large_group] :
           {std::pair{"two_planes", kAllGroups}, {"large_groups", 2.f}, {"one_plane", kNoGroup}})
        benchmark::RegisterBenchmark(
            fmt::format("LinearPrompt{}/{}", suffix, name).c_str(),
            [=, &format](benchmark::State& state) { RunLinear(state, isa, format, 512, large_group, kPanelsInL2); });
    }
  if (CanRun(Isa::kAmx))
    for (const PackedFormat& format : PackedFormats())
      benchmark::RegisterBenchmark(
          fmt::format("LinearPrompt/{}/amx", format.name).c_str(),
          [&format](benchmark::State& state) { RunLinear(state, Isa::kAmx, format, 512, 2.f, kPanelsInL2); });
  return true;
}();

}  // namespace
}  // namespace thermocline
