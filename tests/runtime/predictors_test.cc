#include "runtime/predictors.h"

#include <doctest/doctest.h>

#include "models/error.h"
#include "runtime/ffn_audit.h"
#include "runtime/neuron_samples.h"
#include "runtime/profile.h"
#include "runtime/threshold.h"
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
    CountNeurons(*Start({}), model, tokens, {}, heat);
  }
  std::unique_ptr<Engine> Start(const LoadOptions& load) const {
    return std::make_unique<Engine>(file, model, EngineOptions{.n_ctx = kContext, .n_threads = 2, .load = load});
  }
  std::unique_ptr<Engine> StartPredicted(const HeatPredictors& predictors) const {
    LoadOptions load;
    load.ffn = FfnMode::kPredicted;
    load.predictors = &predictors.layers;
    auto engine = Start(load);
    engine->SetNeuronLevels(predictors.firing_levels);
    return engine;
  }
  PredictorEngines Engines() const {
    return {[this] { return Start({}); },
            [this](const HeatPredictors& predictors) { return StartPredicted(predictors); }};
  }
  void Train(const std::function<void(const Heat&)>& on_save = [](const Heat&) {}) {
    TrainPredictors(model, *tokenizer, SomeTokens(3000, 2), SomeTokens(640, 3), {.n_threads = 2}, Engines(), on_save,
                    heat);
  }

  GgufFile file;
  Model model;
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  Heat heat;
};

TinyOptions Relu() { return {.n_layer = 3, .n_ff = 128, .activation = "relu"}; }

}  // namespace

TEST_CASE("neuron samples: are what gates read and what fires, all tokens or evenly chosen ones") {
  const Subject subject({.n_ff = 128, .activation = "relu"});
  const auto tokens = SomeTokens(200, 5);
  const std::vector<float> levels = {0, 0.1f};
  const auto engine = subject.Start({});
  const auto all = CollectSamples(*engine, subject.model, tokens, levels, int64_t{1} << 30);
  REQUIRE(all.size() == 2);
  CHECK(all[0].n == 200);
  // The gates' weights times what was kept are the gates whose signs were kept.
  const GatedFfn ffn = FindSparseFfns(subject.model, FfnMode::kPredicted)[1];
  const Weight& gate = subject.model.weights[ffn.gate];
  std::vector<float> row(static_cast<size_t>(gate.k));
  int64_t wrong = 0, fired = 0;
  for (int64_t i = 0; i < gate.n; ++i) {
    Dequantize(gate.tensor->type, gate.data() + i * gate.row_bytes(), gate.k, row.data());
    for (int64_t token = 0; token < 200; ++token) {
      double dot = 0;
      for (int64_t k = 0; k < gate.k; ++k) dot += double{row[k]} * HalfToFloat(all[1].inputs[token * gate.k + k]);
      fired += all[1].Fired(token, i);
      wrong += std::abs(dot - 0.1) > 0.01 && all[1].Fired(token, i) != (dot > 0.1);
    }
  }
  CHECK(fired > 200 * gate.n / 10);
  CHECK(wrong <= 200 * gate.n / 1000);
  const auto some = CollectSamples(*engine, subject.model, tokens, levels, 50 * SampleBytes(subject.model.config));
  CHECK(some[0].n == 50);
  int64_t found = 0, late = 0;  // of `some`, in the order of the text
  for (int64_t i = 0; i < 50; ++i)
    for (int64_t token = 0; token < 200; ++token)
      if (std::equal(some[0].inputs.begin() + i * gate.k, some[0].inputs.begin() + (i + 1) * gate.k,
                     all[0].inputs.begin() + token * gate.k)) {
        ++found;
        late += token >= 100;
        break;
      }
  CHECK(found == 50);
  CHECK(late > 10);
  CHECK(late < 40);
}

TEST_CASE("predictors: training finds what fires, and says what it costs") {
  Subject subject(Relu());
  subject.Train();
  const HeatPredictors& predictors = subject.heat.predictors;
  REQUIRE(predictors.complete());
  for (size_t i = 0; i < 3; ++i) {
    CHECK(predictors.recall[i] > 0.85f);
    CHECK(predictors.computed[i] < 0.95f);
    CHECK(predictors.missed[i] > 0);
    CHECK(predictors.missed[i] < 0.3f);
  }
  CHECK(std::abs(predictors.rise) < 0.2f);
  const PredictorEvaluation evaluation =
      EvaluatePredictors(subject.model, *subject.tokenizer, SomeTokens(640, 4), subject.heat, subject.Engines());
  REQUIRE(evaluation.layers.size() == 3);
  CHECK(evaluation.tokens == 640);
  for (size_t i = 0; i < 3; ++i) {
    CHECK(evaluation.layers[i].trained.Recall() == doctest::Approx(predictors.recall[i]).epsilon(0.05));
    CHECK(evaluation.layers[i].trained.Recall() > evaluation.layers[i].sign_recall);
  }
  CHECK(DescribeEvaluation(evaluation).find("perplexity") != std::string::npos);
}

TEST_CASE("predictors: training that was stopped goes on with the layers that are left") {
  Subject subject(Relu());
  subject.Train();
  const HeatPredictors whole = subject.heat.predictors;
  Subject other(Relu());
  Heat saved;
  struct Stopped {};
  CHECK_THROWS_AS(other.Train([&](const Heat& now) {
    saved = now;
    throw Stopped();
  }),
                  Stopped);
  CHECK(saved.predictors.layers[0].rank > 0);
  CHECK(saved.predictors.layers[2].rank == 0);
  saved.predictors.layers[0].bias[0] += 1;  // so that it shows when it is trained anew
  other.heat = saved;
  other.Train();
  for (size_t i = 1; i < 3; ++i) {
    CHECK(other.heat.predictors.layers[i].in == whole.layers[i].in);
    CHECK(other.heat.predictors.layers[i].level == whole.layers[i].level);
  }
  CHECK(other.heat.predictors.layers[0].bias[0] == whole.layers[0].bias[0] + 1);
}

TEST_CASE("predictors: of other activations thresholds say what fires") {
  Subject subject({.n_ff = 128});
  CHECK_THROWS_WITH_AS(subject.Train(), doctest::Contains("--max-rise 1%"), Error);
  LoadOptions sparse;
  sparse.ffn = FfnMode::kThreshold;
  CalibrateThresholds(
      subject.model, *subject.tokenizer, SomeTokens(256, 2), SomeTokens(512, 3),
      {.means = {0.5}, .max_rise = {}, .n_ctx = kContext}, subject.Start({}), [&] { return subject.Start(sparse); },
      [](const Heat&) {}, subject.heat);
  subject.Train();
  CHECK(subject.heat.predictors.firing_levels == subject.heat.thresholds[0].levels);
  CHECK(subject.heat.predictors.recall[1] > 0.85f);
  Subject opt({.arch = "opt"});
  CHECK_THROWS_WITH_AS(opt.Train(), doctest::Contains("with a gate"), Error);
}

TEST_CASE("predictors: an audit finds a damaged predictor and lowers its level until the limit holds") {
  Subject subject(Relu());
  subject.Train();
  const HeatPredictors& good = subject.heat.predictors;
  const auto feed = [](Engine& engine, uint32_t seed) {
    const int sequence = engine.NewSequence();
    test::Feed(engine, sequence, SomeTokens(kContext, seed), 1, RowKind::kGenerated);
    engine.FreeSequence(sequence);
  };
  {
    const auto engine = subject.StartPredicted(good);
    const FfnAuditor audit(*engine, AuditedPredictors(*engine, good), 0.5);
    for (uint32_t seed = 10; seed < 16; ++seed) feed(*engine, seed);
    CHECK(audit.n_lowered() == 0);
  }
  HeatPredictors damaged = good;
  for (float& bias : damaged.layers[1].bias) bias = -5;
  for (size_t i = 0; i < damaged.layers[1].in.size(); i += 34) damaged.layers[1].in[i] ^= 0xff;  // scales
  const auto engine = subject.StartPredicted(damaged);
  const FfnAuditor audit(*engine, AuditedPredictors(*engine, damaged), 0.5);
  for (uint32_t seed = 10; seed < 20; ++seed) feed(*engine, seed);
  CHECK(audit.n_lowered() == 1);
  CHECK(audit.levels()[1] < damaged.layers[1].level - 1);
  engine->SetStepHook({});
  engine->TakeAudit();
  engine->SetAudit(1);
  feed(*engine, 30);
  const FfnAudit after = engine->TakeAudit();
  CHECK(after.missed[1] / static_cast<double>(after.tokens) <= 1.2 * FfnAuditor::kAuditSlack * good.missed[1]);
}

}  // namespace thermocline
