// Models split between the CPU and an emulated device against the CPU alone.
#include "runtime/hybrid.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <random>
#include <thread>

#include "cpu/isa.h"
#include "gpu/emulated_device.h"
#include "runtime/device_plan.h"
#include "runtime/emulated_ops.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline {
namespace {

constexpr int kContext = 192;
#ifdef THERMOCLINE_SANITIZED
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
// Sanitizers and the reference are slow, and see what there is to see in few.
int Plans(int few, int many) { return kSanitized || ChooseIsa() == Isa::kScalar ? few : many; }
// Where values are rounded to 8 bits on the way, in prompt rows and in Q8_0 keys and values, a difference of the last
// bit now and then becomes one of a rounding step, as between any two ways to add up. So prompts are compared with all
// activations in 16 bits, and what rounding costs is compared apart from that.
constexpr double kRounded = 4e-2, kExact = 1e-3;

struct Loaded {
  GgufWriter writer;
  GgufFile file;
  Model model;
  FfnMode ffn;
  KvTypes kv_types;

  explicit Loaded(const TinyOptions& options, FfnMode ffn = FfnMode::kDense, KvTypes kv_types = {})
      : writer(TinyModel(options)), file(writer.Open()), model(Model::FromGguf(file)), ffn(ffn), kv_types(kv_types) {}

  // Prompts are streamed only where the options say from how many rows on.
  std::unique_ptr<Engine> Start(DeviceOptions device = {}, int n_threads = 1) const {
    if (device.stream.min_rows == 0) device.stream.min_rows = kMaxBatchRows + 1;
    EngineOptions options{.n_ctx = kContext, .n_threads = n_threads, .max_sequences = 2, .kv_types = kv_types};
    options.load.ffn = ffn;
    options.device = std::move(device);
    options.reopen = [this] { return writer.Open(); };
    return std::make_unique<Engine>(file, model, options);
  }
};

std::shared_ptr<EmulatedDevice> Emulate(int64_t budget_bytes = int64_t{1} << 30, InjectedFailures failures = {}) {
  return std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = budget_bytes, .failures = failures},
                                          MakeEmulatedOps());
}

// n_ff >= 512; types whose blocks do and do not end where a plan may cut.
std::vector<TinyOptions> Models() {
  return {
      {.type = DType::kQ4_0, .n_ff = 512},
      {.type = DType::kQ8_0, .n_ff = 544, .biases = true, .tied = false, .seed = 2},
      {.type = DType::kQ4_K, .n_embd = 256, .n_ff = 768, .seed = 3},
      {.type = DType::kF16, .n_ff = 576, .n_head_kv = 4, .seed = 4},
      {.arch = "gemma3", .type = DType::kQ4_1, .n_layer = 7, .n_ff = 512, .seed = 5},
      {.arch = "gemma3", .type = DType::kQ6_K, .n_embd = 256, .n_ff = 1024, .window = 70, .seed = 6},
      {.arch = "opt", .type = DType::kQ4_0, .n_ff = 640, .n_head_kv = 4, .biases = true, .seed = 7},
      {.arch = "opt", .type = DType::kQ5_1, .n_ff = 576, .n_head_kv = 4, .biases = true, .tied = false, .seed = 8},
  };
}
// Of which generated rows read only the neurons that are on.
TinyOptions SparseModel() {
  return {.type = DType::kQ4_0, .n_embd = 160, .n_ff = 608, .activation = "relu", .seed = 9};
}

// Any legal placement, or what fills some budget.
DeviceOptions RandomPlan(const Loaded& loaded, std::mt19937& random) {
  const ModelConfig& config = loaded.model.config;
  if (random() % 4 == 0) {
    const int64_t all = int64_t{24} << 20;  // more than any of the models needs
    return {.device = Emulate(all * (random() % 100) / 100), .placement = {}};
  }
  return {.device = Emulate(), .placement = RandomPlacement(config, random)};
}

// In pieces of one run of panels and of many.
StreamOptions RandomStream(std::mt19937& random) {
  return {.min_rows = 1, .piece_bytes = int64_t{1} << (10 + random() % 10)};
}

// n is counted from 1 until so many of them never come.
template <typename Try>
int64_t FailEach(const Try& attempt) {
  int64_t n = 1;
  while (attempt(n)) ++n;
  return n - 1;
}

}  // namespace

TEST_CASE("hybrid: random plans give what the CPU gives alone") {
  const int n_plans = Plans(10, 200);
  std::mt19937 random(1);
  std::vector<Loaded> models;
  for (const TinyOptions& options : Models()) models.emplace_back(options);
  models.emplace_back(SparseModel(), FfnMode::kExact);
  models.emplace_back(TinyOptions{.type = DType::kQ8_0, .n_ff = 576, .seed = 10}, FfnMode::kThreshold);
  std::vector<Logits> expected;
  for (const Loaded& loaded : models) expected.push_back(Play(*loaded.Start(), RowKind::kGenerated));
  Difference all;
  int on_device = 0;
  for (int i = 0; i < n_plans; ++i) {
    const size_t which = i % models.size();
    CAPTURE(i);
    CAPTURE(which);
    const auto engine = models[which].Start(RandomPlan(models[which], random), 1 + i % 2);
    on_device += UsesDevice(engine->placement());
    const Difference difference = Compare(expected[which], Play(*engine, RowKind::kGenerated), kExact);
    CHECK(difference.worst <= kExact);
    CHECK(difference.far_choices == 0);
    all.worst = std::max(all.worst, difference.worst);
    all.n_positions += difference.n_positions;
    all.other_choices += difference.other_choices;
  }
  MESSAGE(n_plans, " plans, ", on_device, " with a part on the device: largest difference ", all.worst, ", ",
          all.other_choices, " of ", all.n_positions, " choices differ");
  CHECK(on_device > n_plans / 2);
  CHECK(all.worst > 0);
  CHECK(all.other_choices <= all.n_positions / 100);
}

TEST_CASE("hybrid: prompt rows and rounded keys and values, streamed or not") {
  const int n_plans = Plans(2, 20);
  std::mt19937 random(2);
  std::vector<TinyOptions> models = Models();
  models.push_back(SparseModel());
  models.push_back(
      {.type = DType::kQ5_1, .n_ff = 544, .activation = "relu", .seed = 10});  // its down gets another type
  int n_streamed = 0;
  for (size_t which = 0; which < models.size(); ++which) {
    const bool rounded_kv = which % 2 == 1;
    Loaded loaded(models[which], models[which].activation == "relu" ? FfnMode::kExact : FfnMode::kDense,
                  rounded_kv ? KvTypes{DType::kQ8_0, DType::kQ8_0} : KvTypes{});
    KeepAllIn16Bits(loaded.model);
    const double bound = rounded_kv ? kRounded : kExact;
    const Logits expected = Play(*loaded.Start(), RowKind::kPrompt);
    for (int i = 0; i < n_plans; ++i) {
      CAPTURE(which);
      CAPTURE(i);
      DeviceOptions plan = RandomPlan(loaded, random);
      if (i % 4 != 0) plan.stream = RandomStream(random);
      const auto device = std::static_pointer_cast<EmulatedDevice>(plan.device);
      const auto engine = loaded.Start(std::move(plan), 1 + i % 2);
      const int64_t uploads = device->counts().uploads;
      const Difference difference = Compare(expected, Play(*engine, RowKind::kPrompt), bound);
      CHECK(difference.worst <= bound);
      CHECK(difference.far_choices == 0);
      n_streamed += device->counts().uploads - uploads > 10;  // a step takes one
    }
  }
  MESSAGE(n_streamed, " plans streamed");
  CHECK(n_streamed > n_plans * std::ssize(models) / 3);
}

TEST_CASE("hybrid: rounding a prompt's rows to 8 bits costs what it costs the CPU alone") {
  const int n_plans = Plans(1, 8);
  std::mt19937 random(3);
  for (const TinyOptions& options : Models()) {
    Loaded loaded(options);
    const Logits rounded = Play(*loaded.Start(), RowKind::kPrompt, 0);
    std::vector<Logits> split;
    for (int i = 0; i < n_plans; ++i) {
      DeviceOptions plan = RandomPlan(loaded, random);
      if (i % 2) plan.stream = RandomStream(random);
      split.push_back(Play(*loaded.Start(std::move(plan)), RowKind::kPrompt, 0));
    }
    KeepAllIn16Bits(loaded.model);
    const Logits expected = Play(*loaded.Start(), RowKind::kPrompt, 0);
    const double alone = RootMeanSquare(expected, rounded);
    for (const Logits& logits : split) {
      CAPTURE(Info(options.type).name);
      CHECK(RootMeanSquare(expected, logits) <= 1.1 * alone + 1e-5);
    }
  }
}

TEST_CASE("hybrid: the Nth allocation and upload of a load fails, for every N") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512});
  const Logits expected = Play(*loaded.Start(), RowKind::kGenerated);
  const auto check = [&](InjectedFailures failures, bool keeps_device) {
    const std::shared_ptr<EmulatedDevice> device = Emulate(int64_t{1} << 30, failures);
    std::vector<std::string> notes;
    {
      const auto engine = loaded.Start({device, {}, [&](const std::string& text) { notes.push_back(text); }});
      const bool due =
          failures.allocation <= device->counts().allocations && failures.upload <= device->counts().uploads;
      if (!due) return false;
      CHECK(notes.size() == (keeps_device ? 3 : 2));  // the plan, what failed, the next plan
      CHECK(UsesDevice(engine->placement()) == keeps_device);
      CHECK(Compare(expected, Play(*engine, RowKind::kGenerated), kExact).worst <= kExact);
    }
    CHECK(device->counts().bytes_in_use == 0);
    CHECK(device->counts().staging_bytes_in_use == 0);
    return true;
  };
  CHECK(FailEach([&](int64_t n) { return check({.allocation = n}, true); }) >= 4);
  CHECK(FailEach([&](int64_t n) { return check({.upload = n}, false); }) >= 20);
}

TEST_CASE("hybrid: the Nth op and upload of a step fails, for every N; what follows is right") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512});
  const Logits expected = Play(*loaded.Start(), RowKind::kGenerated);
  Placement placement = AllOnCpu(loaded.model.config);
  placement.layers[0] = {.n_hot = 256, .attention = Memory::kDevice, .kv = Memory::kDevice};
  placement.layers[1] = {.n_hot = 128};
  placement.head = Memory::kDevice;
  const auto check = [&](bool streamed, InjectedFailures failures) {
    const std::shared_ptr<EmulatedDevice> device = Emulate();
    {
      const auto engine = loaded.Start({device, placement, {}, {.min_rows = 2, .piece_bytes = 1 << 14}});
      REQUIRE(UsesDevice(engine->placement()));
      const int sequence = engine->NewSequence();
      engine->Step({{TokenAt(0, 0), sequence, 0, RowKind::kPrompt, true}});
      device->Inject(failures);
      const RowKind kind = streamed ? RowKind::kPrompt : RowKind::kGenerated;
      Batch batch = {{TokenAt(0, 1), sequence, 1, kind, true}};
      if (streamed) batch.push_back({TokenAt(0, 2), sequence, 2, kind, true});
      try {
        engine->Step(batch);
        return false;
      } catch (const SequencesLost& error) {
        CHECK(std::string(error.what()).find("told to fail") != std::string::npos);
      }
      CHECK(engine->Length(sequence) == 0);
      engine->FreeSequence(sequence);
      CHECK(Play(*engine, RowKind::kGenerated) == expected);
      CHECK_FALSE(UsesDevice(engine->placement()));
    }
    CHECK(device->counts().bytes_in_use == 0);
    CHECK(device->counts().staging_bytes_in_use == 0);
    return true;
  };
  for (const bool streamed : {false, true}) {
    CAPTURE(streamed);
    CHECK(FailEach([&](int64_t n) { return check(streamed, {.launch = n}); }) >= (streamed ? 40 : 20));
    const int64_t n_uploads = FailEach([&](int64_t n) { return check(streamed, {.upload = n}); });
    CHECK((streamed ? n_uploads >= 10 : n_uploads == 1));
    CHECK(FailEach([&](int64_t n) { return check(streamed, {.allocation = n}); }) == 0);  // a step takes no memory
  }
}

TEST_CASE("hybrid: keys and values that a device cannot hold stay with the CPU, and the rest goes there") {
  const Loaded loaded({.type = DType::kQ8_0, .n_ff = 512}, FfnMode::kDense, {DType::kQ8_0, DType::kQ8_0});
  const Logits expected = Play(*loaded.Start(), RowKind::kGenerated);
  const auto device = [] {
    return std::make_shared<EmulatedDevice>(
        EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30, .f16_kv_only = true}, MakeEmulatedOps());
  };
  Placement given = AllOnCpu(loaded.model.config);
  for (LayerPlacement& layer : given.layers) layer.attention = layer.kv = Memory::kDevice;
  for (const std::optional<Placement>& placement : {std::optional<Placement>{}, std::optional{given}}) {
    const auto engine = loaded.Start({device(), placement});
    for (const LayerPlacement& layer : engine->placement().layers) {
      CHECK(layer.kv == Memory::kCpu);
      CHECK((placement ? layer.attention == Memory::kDevice : layer.n_hot == 512));
    }
    CHECK(Compare(expected, Play(*engine, RowKind::kGenerated), kRounded).worst <= kRounded);
  }
}

TEST_CASE("hybrid: a device without kernels for the weights is told from one without room") {
  const Loaded loaded({.type = DType::kF16, .n_ff = 512});
  std::vector<std::string> notes;
  DeviceOptions options;
  options.device = std::make_shared<EmulatedDevice>(
      EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30, .packed_only = true}, MakeEmulatedOps());
  options.on_note = [&](const std::string& text) { notes.push_back(text); };
  CHECK(!UsesDevice(loaded.Start(options)->placement()));
  REQUIRE(notes.size() == 1);
  CHECK(notes[0] == "emulated device has no kernels for weights of these types; the CPU computes everything");
}

TEST_CASE("hybrid: where the file is gone or another one, every request says so until it is back") {
  const TinyOptions tiny{.type = DType::kQ4_0, .n_ff = 512};
  const GgufWriter writer = TinyModel(tiny);
  TinyOptions other = tiny;
  other.seed = 99;
  const GgufFile file = writer.Open();
  const Model model = Model::FromGguf(file);
  const std::shared_ptr<EmulatedDevice> device = Emulate();
  std::function<GgufFile()> reopen;
  EngineOptions options{.n_ctx = kContext, .n_threads = 1, .max_sequences = 2};
  options.device.device = device;
  options.reopen = [&] { return reopen(); };
  Engine engine(file, model, options);
  device->Lose();
  const int sequence = engine.NewSequence();
  const Batch batch = {{TokenAt(0, 0), sequence, 0, RowKind::kGenerated, true}};
  CHECK_THROWS_AS(engine.Step(batch), SequencesLost);
  reopen = []() -> GgufFile { throw Error("gone"); };
  CHECK_THROWS_WITH_AS(engine.Step(batch), "gone", Error);
  reopen = [&] { return TinyModel(other).Open(); };
  CHECK_THROWS_WITH_AS(engine.Step(batch), doctest::Contains("has changed since it was loaded"), Error);
  reopen = [&] { return writer.Open(); };
  engine.Step(batch);
  engine.FreeSequence(sequence);
  CHECK(Play(engine, RowKind::kGenerated) == Play(*Loaded(tiny).Start(), RowKind::kGenerated));
}

TEST_CASE("hybrid: a step can be cancelled anywhere, whichever half waits for the other") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512});
  const Logits expected = Play(*loaded.Start(), RowKind::kGenerated);
  Placement placement = AllOnCpu(loaded.model.config);
  placement.layers[0] = {.n_hot = 256, .attention = Memory::kDevice, .kv = Memory::kDevice};
  placement.layers[1] = {.n_hot = 128, .attention = Memory::kDevice};
  placement.device_tokens = kPageTokens;
  const auto slow = std::make_shared<EmulatedDevice>(
      EmulatedDeviceOptions{.budget_bytes = 1 << 26, .launch_ns = 100'000}, MakeEmulatedOps());
  const auto engine = loaded.Start({slow, placement, {}, {.min_rows = 2, .piece_bytes = 1 << 14}});
  const int sequence = engine->NewSequence();
  const Batch one = {{TokenAt(0, 0), sequence, 0, RowKind::kGenerated, true}};
  const Batch streamed = {{TokenAt(0, 0), sequence, 0, RowKind::kPrompt, true},
                          {TokenAt(0, 1), sequence, 1, RowKind::kPrompt, true}};
  int cancelled = 0;
  for (int i = 0; i < 40; ++i) {
    const Batch& batch = i % 2 ? streamed : one;
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(125 * i));
      engine->Cancel();
    });
    try {
      engine->Step(batch);
    } catch (const Cancelled&) {
      ++cancelled;
    }
    canceller.join();
    try {  // which a Cancel that came too late would hit
      engine->Truncate(sequence, 0);
      engine->Step(batch);
    } catch (const Cancelled&) {
    }
    engine->Truncate(sequence, 0);
  }
  engine->FreeSequence(sequence);
  CHECK(cancelled > 0);
  CHECK(Compare(expected, Play(*engine, RowKind::kGenerated), kExact).worst <= kExact);
}

TEST_CASE("hybrid: a cancelled step leaves the device ready for the next") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512});
  const Logits expected = Play(*loaded.Start(), RowKind::kGenerated);
  const auto engine = loaded.Start({Emulate(), {}});
  const int sequence = engine->NewSequence();
  for (int i = 0; i < 3; ++i) {
    engine->Cancel();
    CHECK_THROWS_AS(engine->Step({{TokenAt(0, 0), sequence, 0, RowKind::kPrompt, true}}), Cancelled);
    CHECK(engine->Length(sequence) == 0);
  }
  engine->FreeSequence(sequence);
  CHECK(Compare(expected, Play(*engine, RowKind::kGenerated), kExact).worst <= kExact);
  CHECK(UsesDevice(engine->placement()));
}

TEST_CASE("hybrid: what is streamed, and what is not") {
  const Loaded loaded({.type = DType::kQ4_0, .n_ff = 512});
  Placement placement = AllOnCpu(loaded.model.config);
  placement.layers[0] = {.n_hot = 256, .attention = Memory::kDevice, .kv = Memory::kDevice};
  const auto device = Emulate();
  const auto engine = loaded.Start({device, placement, {}, {.min_rows = 4}});
  const int sequence = engine->NewSequence();
  const auto uploads = [&](int n_prompt, int n_generated) {
    const int64_t before = device->counts().uploads;
    Batch batch;
    for (int i = 0; i < n_prompt + n_generated; ++i)
      batch.push_back({TokenAt(0, i), sequence, i, i < n_prompt ? RowKind::kPrompt : RowKind::kGenerated, false});
    engine->Step(batch);
    engine->Truncate(sequence, 0);
    return device->counts().uploads - before;
  };
  const int n_layer = loaded.model.config.n_layer;
  CHECK(uploads(4, 0) == 1 + 3 + 7 * (n_layer - 1));  // half of an FFN, and whole layers
  CHECK(uploads(3, 0) == 1);
  CHECK(uploads(4, 1) == 1);
  CHECK(uploads(0, 4) == 1);
  CHECK(engine->PromptRows(1) == 1);
  CHECK(engine->PromptRows(4) == 4);  // with the last one, which is none of the prompt's kind
  CHECK(engine->PromptRows(5) == 4);
  CHECK(engine->PromptRows(kMaxBatchRows + 1) == kMaxBatchRows);
}

TEST_CASE("hybrid: where streaming has no room both sides compute; where it has, it is timed at load") {
  const Loaded loaded({.type = DType::kQ4_0, .n_layer = 6, .n_embd = 256, .n_ff = 1024});
  const auto notes_with = [&](int64_t budget_bytes) {
    std::string notes;
    EngineOptions options{.n_ctx = kContext, .n_threads = 1};
    options.device = {Emulate(budget_bytes), {}, [&](const std::string& text) { notes += text + "\n"; }};
    const Engine engine(loaded.file, loaded.model, options);
    return notes;
  };
  int64_t all = 1 << 20;
  while (notes_with(all).find("1024 of 1024 neurons") == std::string::npos) all += all / 4;
  CHECK(notes_with(all).find("stream") == std::string::npos);
  int64_t half = all;
  while (notes_with(half).find("to stream the rest") == std::string::npos) half -= half / 16;
  CHECK(notes_with(half).find("prompt rows take") != std::string::npos);
}

}  // namespace thermocline
