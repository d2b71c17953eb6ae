// Slices of an FFN over bundles, one thread and one generated row, n_embd = 2048: neurons drawn at random, of 512 MB of
// bundles, so that all comes from memory: GB/s of what is read, bundles and down scales. The bound is the read
// bandwidth of one core (`thermocline machine`), less what scattered runs of a few KiB cost.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <random>
#include <vector>

#include "cpu/activations.h"
#include "cpu/bundle_ffn.h"
#include "cpu/vector_ops.h"

namespace thermocline {
namespace {

constexpr int64_t kEmbd = 2048, kMemoryBytes = int64_t{512} << 20;

void RunSlices(benchmark::State& state, Isa isa, DType type, double active) {
  BundleShape shape{type, BundleShape::DownType(type), kEmbd, kSliceNeurons};
  shape.n_ff = kMemoryBytes / shape.bytes() * kSliceNeurons;
  const Buffer memory(shape.bytes(), "a benchmark");
  for (int64_t i = 0; i < memory.bytes(); i += 4096) memory.data()[i] = 1;
  const Bundles bundles(shape, memory.data());
  const BundleKernel kernel(isa, shape);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(kEmbd), gate(shape.n_ff);
  for (float& value : x) value = normal(random);
  for (float& value : gate) value = random() < active * std::mt19937::max() ? 1.f : 0.f;
  const Buffer row(ActivationRowBytes(kEmbd), "a benchmark"), spread(SpreadBytes(kEmbd), "a benchmark");
  VectorOpsFor(isa).quantize(x.data(), kEmbd, kAllGroups, row.data());
  SpreadActivations(row.data(), kEmbd, spread.data());
  const Buffer partial(shape.n_slices() * shape.n_outputs() * sizeof(float), "a benchmark");
  const BundleRow rows[] = {{gate.data(), spread.data(), partial.as<float>()}};
  NeuronCount count;
  for (auto _ : state) {
    count = {};
    for (int64_t slice = 0; slice < shape.n_slices(); ++slice) RunSlice(kernel, bundles, slice, rows, {}, count);
  }
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(count.bytes_read) * 1e-9, rate);
}

const bool kRegistered = [] {
  for (const DType type : {DType::kQ4_0, DType::kQ8_0})
    for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
      if (!CanRun(isa)) continue;
      for (const int silent : {0, 50, 67, 90})
        benchmark::RegisterBenchmark(
            fmt::format("Bundle/{}/{}/silent{}", Info(type).name, Name(isa), silent).c_str(),
            [=](benchmark::State& state) { RunSlices(state, isa, type, (100 - silent) / 100.0); });
    }
  return true;
}();

}  // namespace
}  // namespace thermocline
