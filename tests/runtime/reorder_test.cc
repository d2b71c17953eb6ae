// Neurons of a running engine put into other orders, and the counts of which of them fire.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <numeric>
#include <random>

#include "cpu/vector_ops.h"
#include "gpu/emulated_device.h"
#include "models/error.h"
#include "predictor/heat_order.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline {
namespace {

constexpr int kContext = 192;
// Neurons added in another order (hybrid_test.cc).
constexpr double kExact = 1e-3;
const std::atomic<bool> kGoOn = false;

struct Loaded {
  GgufWriter writer;
  GgufFile file;
  Model model;
  FfnMode ffn;

  explicit Loaded(const TinyOptions& options, FfnMode ffn = FfnMode::kExact)
      : writer(TinyModel(options)), file(writer.Open()), model(Model::FromGguf(file)), ffn(ffn) {}

  EngineOptions Options(DeviceOptions device = {}, int n_threads = 1) const {
    device.stream.min_rows = 100;
    EngineOptions options{.n_ctx = kContext, .n_threads = n_threads, .max_sequences = 2};
    options.load.ffn = ffn;
    options.load.count_firings = true;
    options.device = std::move(device);
    options.reopen = [this] { return writer.Open(); };
    return options;
  }
  std::unique_ptr<Engine> Start(DeviceOptions device = {}, int n_threads = 1) const {
    auto engine = std::make_unique<Engine>(file, model, Options(std::move(device), n_threads));
    if (ffn == FfnMode::kThreshold)
      engine->SetNeuronLevels(std::vector<float>(static_cast<size_t>(model.config.n_layer), 0.02f));
    return engine;
  }
  int n_layer() const { return model.config.n_layer; }
  int64_t n_ff() const { return model.config.n_ff; }
};

std::vector<TinyOptions> Models() {
  return {{.type = DType::kQ4_0, .n_embd = 160, .n_ff = 608, .activation = "relu", .seed = 1},
          {.type = DType::kQ8_0, .n_ff = 544, .activation = "relu", .seed = 2},
          {.type = DType::kQ4_K, .n_embd = 256, .n_ff = 768, .activation = "relu", .seed = 3},
          {.type = DType::kF16, .n_ff = 576, .activation = "relu", .seed = 4},
          {.type = DType::kQ5_1, .n_ff = 576, .activation = "relu", .seed = 5}};
}

std::shared_ptr<const NeuronOrder> RandomOrder(int64_t n_ff, int unit, std::mt19937& random) {
  std::vector<int32_t> units(static_cast<size_t>(n_ff / unit)), neurons;
  std::iota(units.begin(), units.end(), 0);
  std::shuffle(units.begin(), units.end(), random);
  for (const int32_t first : units)
    for (int i = 0; i < unit; ++i) neurons.push_back(first * unit + i);
  return std::make_shared<const NeuronOrder>(std::move(neurons), unit);
}

std::shared_ptr<EmulatedDevice> Emulate() {
  return std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30}, MakeEmulatedOps());
}

Placement SomeHot(const Loaded& loaded) {
  Placement placement = AllOnCpu(loaded.model.config);
  placement.layers[0] = {.n_hot = 192, .attention = Memory::kDevice, .kv = Memory::kDevice};
  placement.layers[1] = {.n_hot = 320};
  return placement;
}

// Bit for bit, prompts streamed and not, and generated rows.
void CheckSame(Engine& a, Engine& b) {
  CHECK(Play(a, RowKind::kGenerated, 2, 75, 30) == Play(b, RowKind::kGenerated, 2, 75, 30));
  CHECK(Play(a, RowKind::kPrompt, 2, 150) == Play(b, RowKind::kPrompt, 2, 150));
}

template <typename Try>
int64_t FailEach(const Try& attempt) {
  int64_t n = 1;
  while (attempt(n)) ++n;
  return n - 1;
}

// The share of all firings that only one of both has counted.
double Distance(const Firings& a, const Firings& b) {
  REQUIRE(a.fired.size() == b.fired.size());
  double difference = 0, all = 0;
  for (size_t layer = 0; layer < a.fired.size(); ++layer)
    for (size_t i = 0; i < a.fired[layer].size(); ++i) {
      difference += std::abs(double(a.fired[layer][i]) - b.fired[layer][i]);
      all += a.fired[layer][i];
    }
  return difference / all;
}
uint64_t Sum(const Firings& firings) {
  uint64_t sum = 0;
  for (const auto& layer : firings.fired) sum = std::accumulate(layer.begin(), layer.end(), sum);
  return sum;
}

}  // namespace

TEST_CASE("reorder: after any sequence of orders an engine is one that was loaded with the last") {
  std::mt19937 random(1);
  for (const TinyOptions& options : Models())
    for (const FfnMode ffn : {FfnMode::kExact, FfnMode::kThreshold}) {
      const Loaded loaded(options, ffn);
      CAPTURE(std::string(Info(options.type).name));
      CAPTURE(static_cast<int>(ffn));
      for (const bool by_neurons : {false, true}) {
        CAPTURE(by_neurons);
        Placement placement = SomeHot(loaded);
        if (by_neurons)
          for (int layer = 0; layer < loaded.n_layer(); ++layer)
            placement.orders.push_back(RandomOrder(loaded.n_ff(), 1, random));
        const auto engine = loaded.Start({Emulate(), placement}, 2);
        REQUIRE(engine->CanReorder());
        for (int i = 0; i < 4; ++i) {
          const int layer = static_cast<int>(random() % loaded.n_layer());
          const int unit = by_neurons ? 1 : LosslessUnit(loaded.model, layer);
          placement.orders.resize(static_cast<size_t>(loaded.n_layer()));
          placement.orders[layer] = RandomOrder(loaded.n_ff(), unit, random);
          CHECK(engine->Reorder(layer, placement.orders[layer], kGoOn));
          CHECK(HashOf(engine->placement().orders) == HashOf(placement.orders));
          if (i % 2 == 0) continue;
          CheckSame(*engine, *loaded.Start({Emulate(), placement}));
        }
      }
    }
}

TEST_CASE("reorder: between the steps of a sequence, whose keys and values stay") {
  std::mt19937 random(2);
  for (const TinyOptions& options : Models()) {
    CAPTURE(std::string(Info(options.type).name));
    const Loaded loaded(options);
    const auto still = loaded.Start({Emulate(), SomeHot(loaded)}), moved = loaded.Start({Emulate(), SomeHot(loaded)});
    Logits expected, actual;
    const int sequence = still->NewSequence();
    REQUIRE(moved->NewSequence() == sequence);
    for (int at = 0; at < 40; ++at) {
      const Batch batch = {{TokenAt(0, at), sequence, at, RowKind::kGenerated, true}};
      for (auto [engine, logits] : {std::pair(still.get(), &expected), std::pair(moved.get(), &actual)}) {
        engine->Step(batch);
        logits->emplace_back(engine->Logits(0).begin(), engine->Logits(0).end());
      }
      const int layer = at % loaded.n_layer();
      if (at % 3 == 0)
        CHECK(moved->Reorder(layer, RandomOrder(loaded.n_ff(), LosslessUnit(loaded.model, layer), random), kGoOn));
    }
    // Down that bundles hold in another type than the file is rounded in groups of the order.
    const bool lossless = BundleShape::DownType(options.type) == options.type;
    CHECK(Compare(expected, actual, kExact).worst <= (lossless ? kExact : 3e-2));
  }
}

TEST_CASE("reorder: stopped before it has changed anything, it changes nothing") {
  std::mt19937 random(3);
  const Loaded loaded(Models()[0]);
  const auto engine = loaded.Start({Emulate(), SomeHot(loaded)});
  const std::atomic<bool> stop = true;
  CHECK_FALSE(engine->Reorder(0, RandomOrder(loaded.n_ff(), 32, random), stop));
  CHECK(HashOf(engine->placement().orders) == 0);
  CheckSame(*engine, *loaded.Start({Emulate(), SomeHot(loaded)}));
}

TEST_CASE("reorder: the Nth upload fails, for every N, and the device is lost as in a step") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512, .activation = "relu", .biases = false});
  const Logits alone = Play(*loaded.Start(), RowKind::kGenerated);
  const auto check = [&](InjectedFailures failures) {
    std::mt19937 random(4);
    const std::shared_ptr<EmulatedDevice> device = Emulate();
    {
      const auto engine = loaded.Start({device, SomeHot(loaded)});
      const int sequence = engine->NewSequence();
      const auto step = [&](int at) { engine->Step({{TokenAt(0, at), sequence, at, RowKind::kGenerated, true}}); };
      step(0);
      device->Inject(failures);
      try {
        (void)engine->Reorder(0, RandomOrder(loaded.n_ff(), 32, random), kGoOn);
        return false;
      } catch (const DeviceError& error) {
        CHECK(std::string(error.what()).find("told to fail") != std::string::npos);
      }
      CHECK_THROWS_AS(step(1), SequencesLost);
      CHECK(engine->Length(sequence) == 0);
      CHECK_FALSE(engine->CanReorder());
      step(0);
      CHECK(engine->TakeFirings().tokens == 3);
      engine->FreeSequence(sequence);
      CHECK(Play(*engine, RowKind::kGenerated) == alone);
    }
    CHECK(device->counts().bytes_in_use == 0);
    return true;
  };
  CHECK(FailEach([&](int64_t n) { return check({.upload = n}); }) == 3);  // gate, up, down
  CHECK(FailEach([&](int64_t n) { return check({.allocation = n}); }) == 0);
  CHECK(FailEach([&](int64_t n) { return check({.launch = n}); }) == 0);
}

TEST_CASE("reorder: where the file is gone, another one or cut short, everything stays as it was") {
  std::mt19937 random(5);
  const TinyOptions options{.type = DType::kQ4_0, .n_ff = 512, .activation = "relu"};
  const Loaded loaded(options);
  TinyOptions other = options;
  other.seed = 77;
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("thermocline-reorder-" + std::to_string(getpid()) + ".gguf");
  const auto write = [&](const TinyOptions& tiny) {
    const ByteVector bytes = TinyModel(tiny).Build();
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  write(options);
  EngineOptions with = loaded.Options({Emulate(), SomeHot(loaded)});
  with.reopen = {};
  const GgufFile file = GgufFile::Open(path);
  Engine engine(file, Model::FromGguf(file), with);
  const auto reorder = [&] { return engine.Reorder(1, RandomOrder(512, 32, random), kGoOn); };

  std::filesystem::remove(path);
  CHECK_THROWS_AS(reorder(), Error);
  write(other);
  CHECK_THROWS_WITH_AS(reorder(), doctest::Contains("has changed since it was loaded"), Error);
  CheckSame(engine, *loaded.Start({Emulate(), SomeHot(loaded)}));
  std::filesystem::remove(path);
  write(options);
  CHECK(reorder());
  Placement placement = SomeHot(loaded);
  placement.orders = engine.placement().orders;
  const auto overwrite = [&](const TinyOptions& tiny) {
    const ByteVector bytes = TinyModel(tiny).Build();
    std::fstream(path, std::ios::binary | std::ios::in | std::ios::out)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  };
  overwrite(other);
  CHECK_THROWS_WITH_AS(reorder(), doctest::Contains("has changed since it was loaded"), Error);
  overwrite(options);
  CHECK(HashOf(engine.placement().orders) == HashOf(placement.orders));
  std::filesystem::resize_file(path, 4096);  // under the map
  CHECK_THROWS_WITH_AS(reorder(), doctest::Contains("shorter"), Error);
  CHECK(HashOf(engine.placement().orders) == HashOf(placement.orders));
  CheckSame(engine, *loaded.Start({Emulate(), placement}));
  std::filesystem::remove(path);
}

TEST_CASE("firings: those of generated rows, as profile sees them") {
  for (const TinyOptions& options : Models()) {
    CAPTURE(std::string(Info(options.type).name));
    const Loaded loaded(options);
    const auto one = loaded.Start({}, 1), two = loaded.Start({}, 2);
    (void)Play(*one, RowKind::kGenerated);
    (void)Play(*two, RowKind::kGenerated);
    const Firings fired = one->TakeFirings();
    CHECK(fired.tokens == 150 + 9 + 6);
    CHECK(Sum(fired) == static_cast<uint64_t>(one->TakeNeuronCount().active));
    CHECK(fired.fired == two->TakeFirings().fired);
    CHECK(one->TakeFirings().tokens == 0);
    (void)Play(*one, RowKind::kPrompt, 0);
    CHECK(Sum(one->TakeFirings()) == 0);

    // What activations read in dense arithmetic, which sums down in another order.
    EngineOptions dense = loaded.Options();
    dense.load = {};
    Engine engine(loaded.file, loaded.model, dense);
    Firings seen{0, std::vector<std::vector<uint32_t>>(static_cast<size_t>(loaded.n_layer()),
                                                       std::vector<uint32_t>(static_cast<size_t>(loaded.n_ff())))};
    std::mutex mutex;
    engine.SetInputTap([&](const Op& op, int64_t, std::span<const float> gate) {
      if (op.kind != OpKind::kGatedAct) return;
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < gate.size(); ++i) seen.fired[op.layer][i] += gate[i] > 0;
    });
    (void)Play(engine, RowKind::kGenerated);
    CHECK(Distance(fired, seen) < 2e-3);
  }
}

TEST_CASE("firings: those of neurons on a device count for the same neurons, whatever their order") {
  std::mt19937 random(6);
  for (const TinyOptions& options : Models())
    for (const FfnMode ffn : {FfnMode::kExact, FfnMode::kThreshold}) {
      CAPTURE(std::string(Info(options.type).name));
      CAPTURE(static_cast<int>(ffn));
      const Loaded loaded(options, ffn);
      const auto alone = loaded.Start(), split = loaded.Start({Emulate(), SomeHot(loaded)}, 2);
      for (int i = 0; i < 3; ++i) {
        (void)Play(*alone, RowKind::kGenerated);
        (void)Play(*split, RowKind::kGenerated);
        for (int layer = 0; layer < loaded.n_layer(); ++layer)
          CHECK(split->Reorder(layer, RandomOrder(loaded.n_ff(), LosslessUnit(loaded.model, layer), random), kGoOn));
      }
      const Firings expected = alone->TakeFirings(), actual = split->TakeFirings();
      CHECK(actual.tokens == expected.tokens);
      const auto all = static_cast<double>(actual.tokens * loaded.n_layer() * loaded.n_ff());
      CHECK(static_cast<double>(Sum(actual)) > 0.2 * all);
      CHECK(static_cast<double>(Sum(actual)) < 0.8 * all);
      const bool lossless = BundleShape::DownType(options.type) == options.type;
      CHECK(Distance(expected, actual) < (lossless ? 5e-3 : 2e-2));
    }
}

}  // namespace thermocline
