#include "runtime/threshold.h"

#include <doctest/doctest.h>

#include <algorithm>

#include "cpu/isa.h"
#include "models/error.h"
#include "runtime/ffn_audit.h"
#include "runtime/profile.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/some_tokens.h"
#include "tests/runtime/tiny_model.h"

namespace thermocline {
namespace {

constexpr int kContext = 64;

struct Subject {
  explicit Subject(const TinyOptions& options) : file(TinyModel(options).Open()), model(Model::FromGguf(file)) {
    const auto tokens = SomeTokens(1024, 1);
    heat = BeginHeat(file, model, tokens);
    CountNeurons(*Start(FfnMode::kDense), model, tokens, {}, heat);
  }
  std::unique_ptr<Engine> Start(FfnMode mode) const {
    return std::make_unique<Engine>(file, model,
                                    EngineOptions{.n_ctx = kContext, .n_threads = 2, .load = {.ffn = mode}});
  }
  void Calibrate(
      const ThresholdRequest& request, const std::function<void(const Heat&)>& on_save = [](const Heat&) {}) {
    CalibrateThresholds(
        model, *tokenizer, SomeTokens(256, 2), SomeTokens(512, 3), request, Start(FfnMode::kDense),
        [&] { return Start(FfnMode::kThreshold); }, on_save, heat);
  }

  GgufFile file;
  Model model;
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  Heat heat;
};

void CheckSame(const Heat& a, const Heat& b) {
  CHECK(a.sensitivity == b.sensitivity);
  CHECK(a.chosen_threshold == b.chosen_threshold);
  REQUIRE(a.thresholds.size() == b.thresholds.size());
  for (size_t i = 0; i < a.thresholds.size(); ++i) {
    CHECK(a.thresholds[i].sparsity == b.thresholds[i].sparsity);
    CHECK(a.thresholds[i].rise == b.thresholds[i].rise);
    CHECK(a.thresholds[i].levels == b.thresholds[i].levels);
    CHECK(a.thresholds[i].missed == b.thresholds[i].missed);
  }
}

}  // namespace

TEST_CASE("threshold: levels leave out the share that was asked for, on another text") {
  for (const char* arch : {"llama", "gemma3"}) {
    CAPTURE(arch);
    Subject subject({.arch = arch, .n_ff = 128});
    subject.Calibrate({.means = {0.2, 0.6}, .max_rise = {}, .n_ctx = kContext});
    CHECK(subject.heat.chosen_threshold == -1);
    REQUIRE(subject.heat.thresholds.size() == 2);
    for (const ThresholdPoint& point : subject.heat.thresholds) {
      CAPTURE(point.sparsity);
      const auto engine = subject.Start(FfnMode::kThreshold);
      engine->SetNeuronLevels(point.levels);
      test::Feed(*engine, engine->NewSequence(), SomeTokens(kContext, 4), 1, RowKind::kGenerated);
      const NeuronCount count = engine->TakeNeuronCount();
      CHECK(1 - static_cast<double>(count.active) / static_cast<double>(count.neurons) ==
            doctest::Approx(point.sparsity).epsilon(0.1));
    }
    for (size_t i = 0; i < subject.heat.layers.size(); ++i) {
      CHECK(subject.heat.sensitivity[i] > 0);
      CHECK(subject.heat.thresholds[0].missed[i] < subject.heat.thresholds[1].missed[i]);
    }
    CHECK(subject.heat.thresholds[0].rise != subject.heat.thresholds[1].rise);
  }
}

TEST_CASE("threshold: a rise is kept, and a run that was stopped goes on to the same end") {
  if (ChooseIsa() == Isa::kScalar) return;  // slow, and nothing here depends on kernels
  Subject subject({.n_ff = 128});
  const Heat counted = subject.heat;
  const ThresholdRequest request{.means = {0.9}, .max_rise = 0.002, .n_ctx = kContext};
  subject.Calibrate(request);
  const Heat whole = subject.heat;
  REQUIRE(whole.chosen_threshold >= 0);
  REQUIRE(whole.thresholds.size() == 2);
  CHECK(whole.thresholds[whole.chosen_threshold].sparsity > 0.01);
  CHECK(whole.thresholds[whole.chosen_threshold].sparsity != 0.9f);
  for (const int stop : {1, 2, 3}) {
    CAPTURE(stop);
    subject.heat = counted;
    Heat saved = counted;
    int saves = 0;
    try {
      subject.Calibrate(request, [&](const Heat& now) {
        saved = now;
        if (++saves == stop) throw Cancelled{};
      });
    } catch (const Cancelled&) {
    }
    REQUIRE(saves == stop);
    subject.heat = saved;
    subject.Calibrate(request);
    CheckSame(subject.heat, whole);
  }
}

TEST_CASE("threshold: FFNs without a gate are refused") {
  Subject subject({.arch = "opt"});
  CHECK_THROWS_WITH_AS(subject.Calibrate({.means = {0.2}, .max_rise = {}, .n_ctx = kContext}),
                       doctest::Contains("with a gate"), Error);
}

TEST_CASE("threshold: an audit finds levels that are too high and lowers them until the limit holds") {
  Subject subject({.n_ff = 128});
  subject.Calibrate({.means = {0.3}, .max_rise = {}, .n_ctx = kContext});
  const ThresholdPoint& point = subject.heat.thresholds[0];
  const auto engine = subject.Start(FfnMode::kThreshold);
  const auto feed = [&](uint32_t seed) {
    const int sequence = engine->NewSequence();
    test::Feed(*engine, sequence, SomeTokens(kContext, seed), 1, RowKind::kGenerated);
    engine->FreeSequence(sequence);
  };
  {
    engine->SetNeuronLevels(point.levels);
    const FfnAuditor audit(*engine, AuditedThresholds(*engine, point), 0.5);
    CHECK(audit.Describe().empty());
    for (uint32_t seed = 10; seed < 16; ++seed) feed(seed);
    CHECK(audit.n_lowered() == 0);
    CHECK(audit.Describe().find("audit: 192 tokens, FFNs miss ") == 0);
  }
  ThresholdPoint damaged = point;
  damaged.levels[1] *= 5;
  engine->SetNeuronLevels(damaged.levels);
  const FfnAuditor audit(*engine, AuditedThresholds(*engine, damaged), 0.5);
  for (uint32_t seed = 10; seed < 16; ++seed) feed(seed);
  CHECK(audit.n_lowered() == 1);
  CHECK(audit.levels()[0] == point.levels[0]);
  CHECK(audit.levels()[1] < 2 * point.levels[1]);
  CHECK(audit.levels()[1] > 0.5f * point.levels[1]);
  // What the engine does is what the audit says: it misses no more than is allowed.
  engine->SetStepHook({});
  engine->TakeAudit();
  engine->SetAudit(1);
  feed(30);
  const FfnAudit after = engine->TakeAudit();
  CHECK(after.missed[1] / static_cast<double>(after.tokens) <= 1.2 * FfnAuditor::kAuditSlack * point.missed[1]);
}

}  // namespace thermocline
