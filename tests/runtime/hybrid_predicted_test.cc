// Models split between the CPU and an emulated device, of whose CPU part predictors say what is read.
#include <doctest/doctest.h>

#include <numeric>

#include "gpu/emulated_device.h"
#include "models/model.h"
#include "models/neuron_order.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"
#include "tests/runtime/random_predictor.h"

namespace thermocline {
namespace {

constexpr double kExact = 1e-3, kFar = 4e-2;

struct Loaded {
  GgufWriter writer;
  GgufFile file;
  Model model;
  std::vector<NeuronPredictor> predictors;

  explicit Loaded(const TinyOptions& options)
      : writer(TinyModel(options)), file(writer.Open()), model(Model::FromGguf(file)) {
    KeepAllIn16Bits(model);
    std::mt19937 random(options.seed);
    for (int i = 0; i < options.n_layer; ++i) {
      predictors.push_back(RandomPredictor(options.n_embd, options.n_ff, 32, static_cast<uint32_t>(i)));
      // Scores near a cut would fall on either side of it by the order of additions alone.
      for (float& bias : predictors.back().bias) bias = random() % 2 ? 1e30f : -1e30f;
    }
  }

  std::unique_ptr<Engine> Start(const std::vector<NeuronPredictor>& of_layers, DeviceOptions device = {}) const {
    if (device.stream.min_rows == 0) device.stream.min_rows = kMaxBatchRows + 1;
    EngineOptions options{.n_ctx = 192, .n_threads = 2, .max_sequences = 2};
    options.load.ffn = FfnMode::kPredicted;
    options.load.predictors = &of_layers;
    options.device = std::move(device);
    options.reopen = [this] { return writer.Open(); };
    return std::make_unique<Engine>(file, model, options);
  }

  // What the device has is computed, whoever names it.
  std::vector<NeuronPredictor> NamingWhatIsHot(const Placement& placement) const {
    std::vector<NeuronPredictor> naming = predictors;
    for (size_t layer = 0; layer < naming.size(); ++layer)
      for (int64_t i = 0; i < placement.layers[layer].n_hot; ++i)
        naming[layer].bias[placement.orders.empty() ? i : (*placement.orders[layer])[i]] = 1e30f;
    return naming;
  }
};

std::vector<Loaded> Models() {
  std::vector<Loaded> models;
  models.emplace_back(TinyOptions{.type = DType::kQ4_0, .n_embd = 160, .n_ff = 608, .activation = "relu", .seed = 9});
  models.emplace_back(TinyOptions{.type = DType::kQ8_0, .n_ff = 576, .activation = "relu", .seed = 10});
  models.emplace_back(TinyOptions{.arch = "gemma3", .type = DType::kQ8_0, .n_embd = 96, .n_ff = 544, .seed = 11});
  return models;
}

Placement RandomPlan(const Loaded& loaded, std::mt19937& random) {
  Placement placement = RandomPlacement(loaded.model.config, random);
  placement.layers[0].n_hot = 128;
  if (random() % 2 == 0) return placement;
  for (int layer = 0; layer < loaded.model.config.n_layer; ++layer) {
    std::vector<int32_t> groups(static_cast<size_t>(loaded.model.config.n_ff / 32)), neurons;
    std::iota(groups.begin(), groups.end(), 0);
    for (size_t i = groups.size() - 1; i > 0; --i) std::swap(groups[i], groups[random() % (i + 1)]);
    for (const int32_t group : groups)
      for (int i = 0; i < 32; ++i) neurons.push_back(group * 32 + i);
    placement.orders.push_back(std::make_shared<const NeuronOrder>(std::move(neurons), 32));
  }
  return placement;
}

std::shared_ptr<EmulatedDevice> Emulate() {
  return std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30}, MakeEmulatedOps());
}

}  // namespace

TEST_CASE("hybrid predicted: a part of a gate has its part of the predictor") {
  const std::vector<Loaded> models = Models();
  const NeuronPredictor layer = RandomPredictor(160, 608, 64, 5);
  std::mt19937 random(4);
  Placement placement = RandomPlan(models[0], random);
  while (placement.orders.empty()) placement = RandomPlan(models[0], random);
  const NeuronOrder& order = *placement.orders[1];
  Weight gate{.tensor = nullptr, .matrix = true, .n = 96, .k = 160, .first_row = 512};
  for (const bool ordered : {false, true}) {
    if (ordered) gate.rows = placement.orders[1];
    const NeuronPredictor part = PredictorOf(layer, gate);
    CHECK(part.rank == 64);
    CHECK(part.in == layer.in);
    REQUIRE(part.bias.size() == 96);
    REQUIRE(part.out.size() == 96 * 68);
    for (int i = 0; i < 96; ++i) {
      const int neuron = ordered ? order[512 + i] : 512 + i;
      CHECK(part.bias[i] == layer.bias[neuron]);
      CHECK(std::equal(part.out.begin() + i * 68, part.out.begin() + (i + 1) * 68, layer.out.begin() + neuron * 68));
    }
  }
}

TEST_CASE("hybrid predicted: what the CPU gives alone, if what the device has is named in any case") {
  const std::vector<Loaded> models = Models();
  std::mt19937 random(1);
  for (int i = 0; i < 24; ++i) {
    CAPTURE(i);
    const Loaded& loaded = models[i % models.size()];
    const Placement placement = RandomPlan(loaded, random);
    const auto hybrid = loaded.Start(loaded.predictors, {.device = Emulate(), .placement = placement});
    REQUIRE(HashOf(hybrid->placement().orders) == HashOf(placement.orders));
    const std::vector<NeuronPredictor> naming = loaded.NamingWhatIsHot(placement);
    const Logits expected = Play(*loaded.Start(naming), RowKind::kGenerated);
    CHECK(Compare(expected, Play(*hybrid, RowKind::kGenerated), kExact).worst <= kExact);
    const NeuronCount count = hybrid->TakeNeuronCount();
    CHECK(count.predicted > count.neurons / 4);
    CHECK(count.predicted < count.neurons * 3 / 4);
    // Predictors matter: those that were loaded, and not those that name what is hot.
    CHECK(Compare(Play(*loaded.Start(loaded.predictors), RowKind::kGenerated), expected, kExact).worst > kFar);
  }
}

TEST_CASE("hybrid predicted: streamed prompts have gates from rows") {
  const std::vector<Loaded> models = Models();
  std::mt19937 random(2);
  for (int i = 0; i < 12; ++i) {
    CAPTURE(i);
    const Loaded& loaded = models[i % models.size()];
    const Logits expected = Play(*loaded.Start(loaded.predictors), RowKind::kPrompt, 0);
    DeviceOptions options;
    options.placement = RandomPlan(loaded, random);
    const int64_t piece_bytes = int64_t{1} << (10 + random() % 10);
    int64_t uploads[2];
    for (const bool streamed : {false, true}) {
      const auto device = Emulate();
      options.device = device;
      if (streamed) options.stream = {.min_rows = 1, .piece_bytes = piece_bytes};
      const auto hybrid = loaded.Start(loaded.predictors, options);
      const int64_t before = device->counts().uploads;
      CHECK(Compare(expected, Play(*hybrid, RowKind::kPrompt, 0), kExact).worst <= kExact);
      uploads[streamed] = device->counts().uploads - before;
    }
    CHECK(uploads[true] > uploads[false]);
  }
}

TEST_CASE("hybrid predicted: predictors and their levels outlive the device") {
  const std::vector<Loaded> models = Models();
  const Loaded& loaded = models[0];
  const std::vector<float> levels = {2e30f, -2e30f};
  const auto alone = loaded.Start(loaded.predictors);
  alone->SetPredictorLevels(levels);
  const Logits expected = Play(*alone, RowKind::kGenerated);
  std::mt19937 random(3);
  Placement placement = RandomPlacement(loaded.model.config, random);
  placement.layers[0].n_hot = 256;
  const auto device = Emulate();
  const auto engine = loaded.Start(loaded.predictors, {.device = device, .placement = placement});
  engine->SetPredictorLevels(levels);
  device->Inject({.launch = 3});
  CHECK_THROWS_AS(Play(*engine, RowKind::kGenerated), SequencesLost);
  for (int sequence = 0; sequence < 2; ++sequence) engine->FreeSequence(sequence);
  CHECK(Play(*engine, RowKind::kGenerated) == expected);
  CHECK_FALSE(UsesDevice(engine->placement()));
}

}  // namespace thermocline
