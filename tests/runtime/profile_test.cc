#include "runtime/profile.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <mutex>

#include "models/error.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/some_tokens.h"

namespace thermocline {
namespace {

struct Subject {
  explicit Subject(const TinyOptions& options, int n_threads = 2)
      : file(TinyModel(options).Open()),
        model(Model::FromGguf(file)),
        engine(file, model, {.n_ctx = 96, .n_threads = n_threads}) {}
  GgufFile file;
  Model model;
  Engine engine;
};

void CheckSame(const Heat& a, const Heat& b) {
  CHECK(a.n_tokens == b.n_tokens);
  CHECK(a.n_counted == b.n_counted);
  for (size_t i = 0; i < a.layers.size(); ++i) {
    CHECK(a.layers[i].levels == b.layers[i].levels);
    CHECK(a.layers[i].fired == b.layers[i].fired);
    CHECK(a.layers[i].histogram == b.layers[i].histogram);
    for (size_t j = 0; j < a.layers[i].sum_abs.size(); ++j)
      CHECK(a.layers[i].sum_abs[j] == doctest::Approx(b.layers[i].sum_abs[j]).epsilon(1e-6));
  }
}

}  // namespace

TEST_CASE("profile: ReLU neurons fire where what down reads is not zero") {
  for (const char* arch : {"llama", "opt"}) {
    CAPTURE(arch);
    Subject subject({.arch = arch, .activation = "relu"});
    const auto tokens = SomeTokens(300);
    Heat heat = BeginHeat(subject.file, subject.model, tokens);
    CountNeurons(subject.engine, subject.model, tokens, {}, heat);
    CHECK(heat.n_tokens == 300);
    CHECK(heat.n_counted == 300);
    CHECK(heat.targets == std::vector<float>{0});

    const auto n_ff = static_cast<size_t>(heat.n_ff);
    std::vector<std::vector<double>> fired(heat.layers.size(), std::vector<double>(n_ff));
    std::mutex mutex;
    subject.engine.SetInputTap([&](const Op& op, int64_t, std::span<const float> x) {
      if (op.kind != OpKind::kLinear || op.in != Slot::kGate) return;
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < n_ff; ++i) fired[op.layer][i] += x[i] != 0;
    });
    const int sequence = subject.engine.NewSequence();
    Batch batch;  // the first piece of the text
    for (int i = 0; i < 96; ++i) batch.push_back({tokens[i], sequence, i, RowKind::kPrompt, false});
    subject.engine.Step(batch);
    for (size_t layer = 0; layer < fired.size(); ++layer) {
      double all = 0, seen = 0;
      for (size_t i = 0; i < n_ff; ++i) {
        CHECK(heat.layers[layer].fired[i] >= fired[layer][i]);  // of a part of the text
        CHECK((heat.layers[layer].fired[i] == 0) == (heat.layers[layer].sum_abs[i] == 0));
        all += heat.layers[layer].fired[i];
        seen += fired[layer][i];
      }
      CHECK(seen > 0);
      CHECK(all > seen);
      CHECK(all < 0.9 * 300 * static_cast<double>(n_ff));
    }
  }
}

TEST_CASE("profile: levels of other activations leave the shares that they are meant to") {
  for (const char* arch : {"llama", "gemma3"}) {
    CAPTURE(arch);
    Subject subject({.arch = arch});
    const auto tokens = SomeTokens(3000);
    Heat heat = BeginHeat(subject.file, subject.model, tokens);
    CountNeurons(subject.engine, subject.model, tokens, {}, heat);
    CHECK(heat.n_tokens == 3000);
    CHECK(heat.n_counted == 3000 - 320);
    for (size_t layer = 0; layer < heat.layers.size(); ++layer)
      for (size_t target = 0; target < heat.targets.size(); ++target) {
        CAPTURE(heat.targets[target]);
        double fires = 0;
        for (const float frequency : heat.Frequency(static_cast<int>(layer), static_cast<int>(target)))
          fires += frequency / static_cast<double>(heat.n_ff);
        CHECK(fires == doctest::Approx(1 - heat.targets[target]).epsilon(0.05));
        // All of the text says nearly what its beginning did.
        CHECK(heat.Level(static_cast<int>(layer), heat.targets[target]) ==
              doctest::Approx(heat.layers[layer].levels[target]).epsilon(0.1));
      }
  }
}

TEST_CASE("profile: begun anew from any save, and on any number of threads, the counts are the same") {
  const auto tokens = SomeTokens(700);
  for (const char* activation : {"silu", "relu"}) {
    CAPTURE(activation);
    Subject subject({.activation = activation});
    Heat whole = BeginHeat(subject.file, subject.model, tokens);
    CountNeurons(subject.engine, subject.model, tokens, {}, whole);

    Subject alone({.activation = activation}, 1);
    Heat other = BeginHeat(alone.file, alone.model, tokens);
    CountNeurons(alone.engine, alone.model, tokens, {}, other);
    CheckSame(other, whole);

    // A run that fails somewhere, as a killed one ends, after what it had counted was saved.
    for (const int stop : {1, 2, 5, 9}) {
      CAPTURE(stop);
      Heat heat = BeginHeat(subject.file, subject.model, tokens), saved = heat;
      int steps = 0;
      try {
        CountNeurons(
            subject.engine, subject.model, tokens,
            [&](const Heat& now) {
              saved = now;
              if (++steps == stop) throw Cancelled{};
            },
            heat, std::chrono::seconds(0));
      } catch (const Cancelled&) {
      }
      REQUIRE(steps == stop);
      CHECK(saved.n_tokens < 700);
      subject.engine.FreeSequence(0);
      CountNeurons(subject.engine, subject.model, tokens, {}, saved);
      CheckSame(saved, whole);
    }
  }
}

TEST_CASE("profile: texts that are too short, and models that compute no numbers, are refused") {
  Subject subject({});
  CHECK_THROWS_WITH_AS(BeginHeat(subject.file, subject.model, SomeTokens(255)), doctest::Contains("255 tokens"), Error);
  CHECK_NOTHROW(BeginHeat(subject.file, subject.model, SomeTokens(256)));

  GgufWriter writer = TinyModel({.type = DType::kF32});
  ByteVector bytes = writer.Build();
  const GgufFile whole = GgufFile::FromBytes(bytes, "tiny");
  const Tensor& gate = *whole.FindTensor("blk.1.ffn_gate.weight");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + gate.offset + 40, &nan, sizeof nan);
  const GgufFile damaged = GgufFile::FromBytes(bytes, "tiny");
  const Model model = Model::FromGguf(damaged);
  Engine engine(damaged, model, {.n_ctx = 96, .n_threads = 2});
  const auto tokens = SomeTokens(300);
  Heat heat = BeginHeat(damaged, model, tokens);
  CHECK_THROWS_WITH_AS(CountNeurons(engine, model, tokens, {}, heat), doctest::Contains("not numbers"), Error);
}

}  // namespace thermocline
