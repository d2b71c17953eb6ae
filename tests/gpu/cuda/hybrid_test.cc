// Models split between the CPU and a GPU against the CPU alone.
#include "runtime/hybrid.h"

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

}  // namespace thermocline::test
