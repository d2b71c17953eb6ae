// The ops between products, one thread, one row of TinyLlama's width that stays in the cache: GB/s of what they read
// and write, bound by the load and store ports. The float product of one row reads 512 MB from memory: bound by the
// read bandwidth of one core (`thermocline machine`); of a prompt (M=512, through oneDNN where it is built in):
// GFLOP/s.
//
//   ninja kernel_bench && bench/kernels/kernel_bench --benchmark_filter='VectorOps|Float'
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/float_linear.h"
#include "cpu/vector_ops.h"

namespace thermocline {
namespace {

constexpr int kEmbd = 2048, kFf = 5632, kHeadDim = 64, kGroup = 8;
constexpr int64_t kMemoryBytes = int64_t{512} << 20;

void Report(benchmark::State& state, double bytes, double flops = 0) {
  const auto rate = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, rate);
  if (flops > 0) state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, rate);
}

// Floats near 1 in 64-byte aligned memory.
struct Row {
  explicit Row(int64_t n) : buffer(n * 4, "a benchmark") {
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) data()[i] = normal(engine);
  }
  float* data() const { return buffer.as<float>(); }
  Buffer buffer;
};

void RegisterOp(Isa isa, const char* name, double bytes, std::function<void(const VectorOps&)> run) {
  benchmark::RegisterBenchmark(fmt::format("VectorOps/{}/{}", name, Name(isa)).c_str(),
                               [=, run = std::move(run)](benchmark::State& state) {
                                 const VectorOps& ops = VectorOpsFor(isa);
                                 for (auto _ : state) {
                                   run(ops);
                                   benchmark::ClobberMemory();
                                 }
                                 Report(state, bytes);
                               });
}

void RegisterOps(Isa isa) {
  static const Row x(kFf), y(kFf), weight(kFf), state_row(3 * kGroup * kHeadDim);
  static const Row rotation(kHeadDim);
  for (int i = 0; i < kHeadDim; i += 2) {  // keeps lengths, or what is rotated again and again would fade to denormals
    rotation.data()[i] = 0.6f;
    rotation.data()[i + 1] = 0.8f;
  }
  static const Buffer bytes(ActivationRowBytes(kFf), "a benchmark");
  static const Buffer page(2 * kHeadDim * kPageTokens * 2, "a benchmark");
  RegisterOp(isa, "rms_norm/2048", 3.0 * 4 * kEmbd,
             [](const VectorOps& ops) { ops.rms_norm(x.data(), weight.data(), 1e-5f, kEmbd, false, y.data()); });
  RegisterOp(isa, "layer_norm/2048", 4.0 * 4 * kEmbd, [](const VectorOps& ops) {
    ops.layer_norm(x.data(), weight.data(), x.data() + kEmbd, 1e-5f, kEmbd, y.data());
  });
  for (const RopeKind kind : {RopeKind::kInterleaved, RopeKind::kHalves})
    RegisterOp(isa, kind == RopeKind::kHalves ? "rope_halves/64" : "rope_interleaved/64", 3.0 * 4 * kHeadDim,
               [=](const VectorOps& ops) { ops.rope(y.data(), rotation.data(), kHeadDim, kind); });
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu})
    RegisterOp(isa, fmt::format("gated_{}/{}", Name(activation), kFf).c_str(), 3.0 * 4 * kFf,
               [=](const VectorOps& ops) { ops.gated_act(x.data(), weight.data(), kFf, activation, y.data()); });
  RegisterOp(isa, fmt::format("relu/{}", kFf).c_str(), 2.0 * 4 * kFf,
             [](const VectorOps& ops) { ops.act(x.data(), kFf, Activation::kRelu, y.data()); });
  RegisterOp(isa, "add/2048", 3.0 * 4 * kEmbd, [](const VectorOps& ops) { ops.add(x.data(), kEmbd, y.data()); });
  for (const float large_group : {kAllGroups, 2.f})
    RegisterOp(isa, large_group == kAllGroups ? "quantize_two_planes/2048" : "quantize_large_groups/2048",
               4.0 * kEmbd + static_cast<double>(ActivationRowBytes(kEmbd)),
               [=](const VectorOps& ops) { ops.quantize(x.data(), kEmbd, large_group, bytes.data()); });
  RegisterOp(isa, "store_kv/64", 2.0 * (4 + 2) * kHeadDim,
             [](const VectorOps& ops) { ops.store_kv({}, x.data(), weight.data(), kHeadDim, 7, page.data()); });
  RegisterOp(isa, "attention_merge/8x64", 3.0 * 4 * kGroup * kHeadDim, [](const VectorOps& ops) {
    static float max[kGroup] = {}, sum[kGroup] = {}, max2[kGroup] = {}, sum2[kGroup] = {};
    for (int i = 0; i < kGroup; ++i) sum[i] = sum2[i] = 1;
    ops.attention_merge(kGroup, kHeadDim, max2, sum2, x.data(), max, sum, state_row.data());
  });
}

void RunFloatGemv(benchmark::State& state, Isa isa, DType type) {
  const int64_t stride = kEmbd * (type == DType::kF32 ? 4 : 2), n = kMemoryBytes / stride;
  const Buffer weights(n * stride, "a benchmark");
  for (int64_t i = 0; i < n * stride; i += 4096) weights.data()[i] = 1;  // pages of their own; zeros take as long
  const Row x(kEmbd), y(n);
  for (auto _ : state) {
    VectorOpsFor(isa).float_gemv(type, weights.data(), stride, n, kEmbd, x.data(), y.data());
    benchmark::ClobberMemory();
  }
  Report(state, static_cast<double>(n * stride), 2.0 * static_cast<double>(n) * kEmbd);
}

void RunFloatPrompt(benchmark::State& state, Isa isa, DType type) {
  constexpr int64_t kRows = 512, kN = 512;
  PackedMatrix weights(type, kN, kEmbd);
  const Row x(kRows * kEmbd), y(kRows * kN);
  FloatLinear linear(VectorOpsFor(isa), 1);
  linear.Prepare(kEmbd);
  const auto is_prompt = [](int64_t) { return true; };
  for (auto _ : state) {
    linear.Run({weights, 0, kN, x.data(), kEmbd, y.data(), kN, kRows, false}, is_prompt, 0);
    benchmark::ClobberMemory();
  }
  Report(state, static_cast<double>(weights.bytes()), 2.0 * kRows * kN * kEmbd);
}

const bool kRegistered = [] {
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!CanRun(isa)) continue;
    RegisterOps(isa);
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      const std::string suffix = fmt::format("{}/{}", Info(type).name, Name(isa));
      benchmark::RegisterBenchmark(("FloatGemv/" + suffix).c_str(),
                                   [=](benchmark::State& state) { RunFloatGemv(state, isa, type); });
      benchmark::RegisterBenchmark(("FloatPrompt/" + suffix + "/M512").c_str(),
                                   [=](benchmark::State& state) { RunFloatPrompt(state, isa, type); });
    }
  }
  return true;
}();

}  // namespace
}  // namespace thermocline
