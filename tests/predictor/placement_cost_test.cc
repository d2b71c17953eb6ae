#include "predictor/placement_cost.h"

#include <doctest/doctest.h>

#include <random>

#include "models/packed_format.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

constexpr DeviceRates kDevice{.bytes_per_s = 1e9, .launch_s = 1e-6, .transfer_s = 1e-5, .transfer_bytes_per_s = 1e8};

struct Subject {
  explicit Subject(const TinyOptions& options) : file(TinyModel(options).Open()), model(Model::FromGguf(file)) {}
  GgufFile file;
  Model model;

  CpuSeconds Measure(FfnMode mode, double active) const {
    const auto n = static_cast<size_t>(model.config.n_layer);
    return MeasureCpu(model, mode, {std::vector(n, active), std::vector(n, 2 * active), std::vector<int64_t>(n, 32)},
                      {}, 1, 100);
  }
};

}  // namespace

TEST_CASE("placement cost: where neurons are predicted, the gates of a block cost what is named of them") {
  const Subject subject({.n_ff = 512, .activation = "relu"});
  const ModelConfig& config = subject.model.config;
  const CpuSeconds cpu = subject.Measure(FfnMode::kPredicted, 0.2);
  for (const CpuLayerSeconds& layer : cpu.layers) {
    CHECK(layer.gate > 0);
    CHECK(layer.gate == layer.gates.At(0.4));
    CHECK(layer.named_per_firing == doctest::Approx(2));
  }
  std::vector<std::vector<double>> heat(static_cast<size_t>(config.n_layer), std::vector<double>(8, 0.2));
  const PlacementProblem even = MakeProblem(subject.model, cpu, kDevice, {}, 100, heat);
  CHECK(SecondsPerToken(even, AllOnCpu(config)) == doctest::Approx(cpu.sum()));
  heat[0][0] = 0.9;  // and not 1.8
  const PlacementProblem hot = MakeProblem(subject.model, cpu, kDevice, {}, 100, heat);
  const CpuLayerSeconds& first = cpu.layers[0];
  CHECK(hot.layers[0].neurons[0].cpu_s == doctest::Approx((first.gates.At(1) + first.neurons.At(0.9)) / 8));
  CHECK(hot.layers[0].neurons[1].cpu_s == even.layers[0].neurons[1].cpu_s);
}

TEST_CASE("placement cost: to part hot from cold never costs time, however badly the neurons were measured") {
  constexpr double kStep = 1 / 64.;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> any(0, 1);
  for (int i = 0; i < 1000; ++i) {
    const NeuronSeconds seconds({any(random), any(random), any(random)});
    for (double share = 0; share <= 1; share += kStep) {
      for (double away = 0; away <= std::min(share, 1 - share); away += kStep) {
        const double parted = (seconds.At(share - away) + seconds.At(share + away)) / 2;
        REQUIRE(parted >= 0);
        REQUIRE(parted <= seconds.At(share) + 1e-12);
        REQUIRE(seconds.At(share - away) <= seconds.At(share) + 1e-12);
      }
    }
  }
  constexpr std::array<double, 3> kGood = {0.1, 0.3, 0.8};
  for (size_t i = 0; i < kGood.size(); ++i)
    CHECK(NeuronSeconds(kGood).At(NeuronSeconds::kShares[i]) == doctest::Approx(kGood[i]));
}

TEST_CASE("placement cost: everything on the CPU takes what its parts take, and all bytes are somewhere") {
  for (const TinyOptions& options :
       {TinyOptions{.n_ff = 160}, TinyOptions{.arch = "gemma3", .n_layer = 3}, TinyOptions{.arch = "opt"}}) {
    CAPTURE(options.arch);
    const Subject subject(options);
    const ModelConfig& config = subject.model.config;
    const CpuSeconds cpu = subject.Measure(FfnMode::kDense, 1);
    REQUIRE(cpu.layers.size() == static_cast<size_t>(config.n_layer));
    for (const CpuLayerSeconds& layer : cpu.layers) {
      for (const double part : {layer.attention, layer.kv, layer.ffn, layer.gate}) {
        CHECK(part > 0);
        CHECK(part < 1);
      }
      CHECK(layer.up_down == 0);
    }
    const PlacementProblem problem = MakeProblem(subject.model, cpu, kDevice, {}, 100);
    CHECK(SecondsPerToken(problem, AllOnCpu(config)) == doctest::Approx(cpu.sum()));

    int64_t bytes = 0;  // of what is multiplied by; the embedding is the head, learned positions stand beside it
    for (const Op& op : subject.model.program.ops) {
      if (op.positions >= 0) {
        const Weight& weight = subject.model.weights[op.positions];
        bytes += PackedBytes(weight.type(), weight.n, weight.k);
      }
      for (int i = 0; i < op.n_projections; ++i) {
        const Weight& weight = subject.model.weights[op.projections[i].weight];
        bytes += PackedBytes(weight.type(), weight.n, weight.k);
      }
    }
    const KvLayout layout(config, {});
    for (int layer = 0; layer < config.n_layer; ++layer) {
      const int pages = config.IsWindowLayer(layer) ? 1 : 2;  // of 100 tokens, or a window of 8
      bytes += pages * config.n_head_kv * layout.head_bytes;
    }
    CHECK(BytesInAll(problem) <= bytes);
    CHECK(BytesInAll(problem) >= bytes - 3 * config.n_layer);  // blocks are rounded down
  }
}

TEST_CASE("placement cost: a device takes its launches, its bytes and the ways there and back") {
  const Subject subject({.n_ff = 160});
  const ModelConfig& config = subject.model.config;
  const PlacementProblem problem = MakeProblem(subject.model, subject.Measure(FfnMode::kDense, 1), kDevice, {}, 100);
  Placement placement = AllOnCpu(config);
  for (LayerPlacement& layer : placement.layers) layer = {config.n_ff, Memory::kDevice, Memory::kDevice};
  placement.head = Memory::kDevice;
  const double ways = kDevice.transfer_s * 2 + 4e-8 * (config.n_embd + config.n_vocab);  // of the input and the logits
  const double seconds = SecondsPerToken(problem, placement) - ways;
  const double bytes = static_cast<double>(BytesOnDevice(problem, placement));
  CHECK(BytesOnDevice(problem, placement) == BytesInAll(problem));
  CHECK(seconds > bytes / 1e9 + 10e-6 * config.n_layer);  // launches: of about a dozen ops a layer
  CHECK(seconds < bytes / 1e9 + 16e-6 * config.n_layer);
}

TEST_CASE("placement cost: bundles have a part of their own") {
  const Subject subject({.type = DType::kQ4_0, .n_ff = 1024, .activation = "relu"});
  for (const CpuLayerSeconds& layer : subject.Measure(FfnMode::kExact, 0.5).layers) {
    CHECK(layer.gate > 0);
    CHECK(layer.up_down > 0);
  }
}

}  // namespace thermocline
