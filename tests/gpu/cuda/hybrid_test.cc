// Models split between the CPU and a GPU against the CPU alone.
#include "runtime/hybrid.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>

#include "gpu/devices.h"
#include "runtime/engine.h"
#include "tests/gpu/cuda/device_array.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline::test {
namespace {

constexpr int kContext = 256;
// Over the largest logit of a position. Other orders of sums make now and then one F16 of a key the next one, which in
// a random model may move a score by a few thousandths: the Q5_0 one below has such a position, 0.0022 off between a
// GPU and the CPU as well as between the CPU's scalar and vector kernels. Where prompt rows are rounded to 8 bits, it
// is a rounding step of those.
constexpr double kGenerated = 1e-3, kFlipped = 4e-3, kPrompt = 4e-2;

struct Loaded {
  GgufWriter writer;
  GgufFile file;
  Model model;

  FfnMode ffn;

  explicit Loaded(const TinyOptions& options, FfnMode ffn = FfnMode::kDense)
      : writer(TinyModel(options)), file(writer.Open()), model(Model::FromGguf(file)), ffn(ffn) {}

  std::unique_ptr<Engine> Start(DeviceOptions device = {}) const {
    EngineOptions options{.n_ctx = kContext, .n_threads = 2, .max_sequences = 2};
    options.load.ffn = ffn;
    options.load.count_firings = true;
    options.device = std::move(device);
    options.reopen = [this] { return writer.Open(); };
    return std::make_unique<Engine>(file, model, options);
  }
};

}  // namespace

TEST_CASE("hybrid: a GPU and the CPU give what the CPU gives alone") {
  if (!HasGpu()) return;
  std::mt19937 random(1);
  const TinyOptions models[] = {
      {.type = DType::kQ4_0, .n_ff = 512},
      {.type = DType::kQ8_0, .n_ff = 544, .biases = true, .tied = false, .seed = 2},
      {.type = DType::kQ5_0, .n_ff = 512, .n_head_kv = 4, .seed = 8},
      {.type = DType::kQ4_K, .n_embd = 256, .n_ff = 768, .seed = 3},
      {.arch = "gemma3", .type = DType::kQ4_1, .n_layer = 7, .n_ff = 512, .seed = 5},
      {.arch = "gemma3", .type = DType::kQ6_K, .n_embd = 256, .n_ff = 1024, .window = 70, .seed = 6},
      {.arch = "opt", .type = DType::kQ4_0, .n_ff = 640, .n_head_kv = 4, .biases = true, .seed = 7},
  };
  for (const TinyOptions& options : models) {
    const Loaded loaded(options);
    const auto play = [](Engine& engine, RowKind kind) { return Play(engine, kind, 8, 40); };
    const Logits generated = play(*loaded.Start(), RowKind::kGenerated);
    const Logits prompts = play(*loaded.Start(), RowKind::kPrompt);
    for (int i = 0; i < 6; ++i) {
      CAPTURE(options.arch);
      CAPTURE(i);
      DeviceOptions device{.device = OpenDevice(0, int64_t{1} << 30), .placement = {}};
      if (i > 0) device.placement = RandomPlacement(loaded.model.config, random);  // else whatever fits
      if (i % 2 == 1) device.stream = {.min_rows = 9, .piece_bytes = 1 << (12 + 2 * i)};
      const auto engine = loaded.Start(std::move(device));
      const Logits logits = play(*engine, RowKind::kGenerated), streamed = play(*engine, RowKind::kPrompt);
      const Difference generated_by = Compare(generated, logits, kGenerated);
      const Difference prompts_by = Compare(prompts, streamed, kPrompt);
      MESSAGE(options.arch, " ", std::string(Info(options.type).name), " plan ", i, ": ", generated_by.worst, ", ",
              generated_by.n_far, " of ", generated_by.n_positions, " positions above ", kGenerated, "; prompts ",
              prompts_by.worst);
      CHECK(generated_by.worst <= kFlipped);
      CHECK(generated_by.n_far <= generated_by.n_positions / 50);
      CHECK(prompts_by.worst <= kPrompt);
      CHECK(play(*engine, RowKind::kGenerated) == logits);  // a race would show
      CHECK(play(*engine, RowKind::kPrompt) == streamed);
      if (i == 0) CHECK(UsesDevice(engine->placement()));
    }
  }
}

// FFNs in bundles, whose panels are made anew, and so many pieces that launches are far ahead of the device.
TEST_CASE("hybrid: a prompt of many pieces, streamed") {
  if (!HasGpu()) return;
  const Loaded loaded({.type = DType::kQ4_0, .n_layer = 12, .n_embd = 320, .n_ff = 1024, .activation = "relu"},
                      FfnMode::kExact);
  const Logits expected = Play(*loaded.Start(), RowKind::kPrompt);
  const Placement placement = AllOnCpu(loaded.model.config);
  for (const bool attention : {false, true}) {
    Placement some = placement;
    for (size_t i = 0; i < some.layers.size(); ++i) {
      some.layers[i].n_hot = static_cast<int64_t>(i % 3) * 256;
      if (attention) some.layers[i].attention = Memory::kDevice;
    }
    const auto engine = loaded.Start({.device = OpenDevice(0, int64_t{1} << 30),
                                      .placement = some,
                                      .stream = {.min_rows = 9, .piece_bytes = 1 << 13}});
    const Logits logits = Play(*engine, RowKind::kPrompt);
    CHECK(Compare(expected, logits, kPrompt).worst <= kPrompt);
    for (int i = 0; i < 2; ++i) CHECK(Play(*engine, RowKind::kPrompt) == logits);
  }
}

TEST_CASE("hybrid: neurons change places while a GPU and the CPU run, and those that fire are counted on both") {
  if (!HasGpu()) return;
  std::mt19937 random(2);
  const Loaded loaded({.type = DType::kQ8_0, .n_embd = 320, .n_ff = 1024, .activation = "relu"}, FfnMode::kExact);
  Placement placement = AllOnCpu(loaded.model.config);
  for (LayerPlacement& layer : placement.layers) layer.n_hot = 384;
  const auto start = [&](const Placement& some) {
    return loaded.Start({.device = OpenDevice(0, int64_t{1} << 30), .placement = some});
  };
  const auto alone = loaded.Start(), split = start(placement);
  const std::atomic<bool> go_on = false;
  for (int i = 0; i < 4; ++i) {
    CHECK(Compare(Play(*alone, RowKind::kGenerated), Play(*split, RowKind::kGenerated), kFlipped).worst <= kFlipped);
    std::vector<int32_t> neurons(1024);
    std::iota(neurons.begin(), neurons.end(), 0);
    std::shuffle(neurons.begin(), neurons.end(), random);
    const auto order = std::make_shared<const NeuronOrder>(std::move(neurons), 1);
    placement.orders.resize(placement.layers.size());
    placement.orders[i % 2] = order;
    CHECK(split->Reorder(i % 2, order, go_on));
  }
  CHECK(Play(*split, RowKind::kGenerated) == Play(*start(placement), RowKind::kGenerated));
  (void)Play(*alone, RowKind::kGenerated);
  const Firings expected = alone->TakeFirings(), actual = split->TakeFirings();
  CHECK(actual.tokens == expected.tokens);
  double difference = 0, all = 0;
  for (size_t layer = 0; layer < expected.fired.size(); ++layer)
    for (size_t i = 0; i < expected.fired[layer].size(); ++i) {
      difference += std::abs(double(expected.fired[layer][i]) - actual.fired[layer][i]);
      all += expected.fired[layer][i];
    }
  CHECK(all > 0);
  CHECK(difference < 0.02 * all);
}

}  // namespace thermocline::test
