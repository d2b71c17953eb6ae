// FFNs of which a predictor says what is read, in whole models.
#include <doctest/doctest.h>

#include "cpu/isa.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"
#include "tests/runtime/random_predictor.h"
#include "tests/runtime/tiny_model.h"

namespace thermocline {
namespace {

constexpr float kAll = -1e30f, kNone = 1e30f;

// n_ff: three slices, the last of half a group pair.
TinyOptions Relu(DType type) { return {.type = type, .n_embd = 160, .n_ff = 544, .activation = "relu"}; }

std::vector<TokenId> SomeTokens(int n, int seed) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back((i * 37 + seed * 11 + 5) % 280);
  return tokens;
}

struct Loaded {
  GgufFile file;
  Model model;
  std::vector<NeuronPredictor> predictors;
  explicit Loaded(const TinyOptions& options) : file(TinyModel(options).Open()), model(Model::FromGguf(file)) {
    for (int i = 0; i < options.n_layer; ++i)
      predictors.push_back(RandomPredictor(options.n_embd, options.n_ff, 32 * (i + 1), static_cast<uint32_t>(i)));
  }

  std::unique_ptr<Engine> Start(FfnMode ffn, int n_threads, int max_sequences = 1) const {
    EngineOptions options{.n_ctx = 64, .n_threads = n_threads, .max_sequences = max_sequences};
    options.load.ffn = ffn;
    options.load.predictors = &predictors;
    return std::make_unique<Engine>(file, model, options);
  }
};

Logits FeedNew(Engine& engine, int n, int seed, int span, RowKind kind = RowKind::kGenerated) {
  const int sequence = engine.NewSequence();
  const Logits logits = test::Feed(engine, sequence, SomeTokens(n, seed), span, kind);
  engine.FreeSequence(sequence);
  return logits;
}

}  // namespace

TEST_CASE("predicted: all neurons predicted are exact, none are no FFN at all") {
  for (const DType type : {DType::kQ4_0, DType::kQ5_1, DType::kQ8_0}) {
    CAPTURE(Info(type).name);
    const Loaded loaded(Relu(type));
    const auto predicted = loaded.Start(FfnMode::kPredicted, 2), exact = loaded.Start(FfnMode::kExact, 1);
    predicted->SetPredictorLevels(std::vector<float>{kAll, kAll});
    const Logits all = FeedNew(*predicted, 20, 2, 1);
    CHECK(Compare(FeedNew(*exact, 20, 2, 1), all, 1).worst < 1e-3);
    NeuronCount count = predicted->TakeNeuronCount();
    CHECK(count.predicted == count.neurons);
    CHECK(count.active > count.neurons / 4);
    CHECK(count.active < count.neurons * 3 / 4);
    predicted->SetPredictorLevels(std::vector<float>{kNone, kNone});
    const auto silent = loaded.Start(FfnMode::kThreshold, 1);
    silent->SetNeuronLevels(std::vector<float>{kNone, kNone});
    CHECK(FeedNew(*predicted, 20, 2, 1) == FeedNew(*silent, 20, 2, 1));
    count = predicted->TakeNeuronCount();
    CHECK(count.predicted == 0);
    CHECK(count.active == 0);
    CHECK(count.bytes_read == 0);
  }
}

TEST_CASE("predicted: threads and neighbours change no bit of a row, prompt rows among them") {
  for (const TinyOptions& options : {Relu(DType::kQ4_0), Relu(DType::kQ8_0),
                                     TinyOptions{.arch = "gemma3", .type = DType::kQ8_0, .n_embd = 96, .n_ff = 544}}) {
    CAPTURE(options.arch);
    const Loaded loaded(options);
    const auto alone = loaded.Start(FfnMode::kPredicted, 1);
    std::vector<Logits> expected;
    for (int i = 0; i < 5; ++i) expected.push_back(FeedNew(*alone, 10, i, 1));
    const NeuronCount count = alone->TakeNeuronCount();
    CHECK(count.predicted > count.neurons / 4);
    CHECK(count.predicted < count.neurons * 3 / 4);
    CHECK(count.active <= count.predicted);
    const Logits prompt = FeedNew(*alone, 20, 9, 20, RowKind::kPrompt);
    for (const int n_threads : {1, 2}) {
      const auto together = loaded.Start(FfnMode::kPredicted, n_threads, 6);
      CHECK(FeedNew(*together, 10, 0, 10) == expected[0]);  // rows of one sequence
      int sequences[6];
      for (int& sequence : sequences) sequence = together->NewSequence();
      for (int step = 0; step < 10; ++step) {
        Batch batch;
        std::vector<std::vector<float>> wanted;
        for (int i = 0; i < 5; ++i) {
          batch.push_back({SomeTokens(10, i)[step], sequences[i], step, RowKind::kGenerated, true});
          wanted.push_back(expected[i][step]);
          if (i != 2) continue;
          for (int j = 2 * step; j < 2 * step + 2; ++j) {
            batch.push_back({SomeTokens(20, 9)[j], sequences[5], j, RowKind::kPrompt, true});
            wanted.push_back(prompt[j]);
          }
        }
        together->Step(batch);
        for (size_t i = 0; i < wanted.size(); ++i) {
          const auto row = together->Logits(static_cast<int>(i));
          CHECK(std::vector<float>(row.begin(), row.end()) == wanted[i]);
        }
      }
    }
  }
}

TEST_CASE("predicted: prompt rows are those of the other modes") {
  if (ChooseIsa() == Isa::kScalar) return;  // whose sums are rounded where a panel ends
  const Loaded loaded(Relu(DType::kQ4_0));
  const auto predicted = loaded.Start(FfnMode::kPredicted, 2), dense = loaded.Start(FfnMode::kDense, 2);
  CHECK(FeedNew(*predicted, 60, 1, 60, RowKind::kPrompt) == FeedNew(*dense, 60, 1, 60, RowKind::kPrompt));
}

TEST_CASE("predicted: an audit says what was not predicted and changes nothing") {
  const Loaded loaded(Relu(DType::kQ4_0));
  std::vector<double> first;
  for (const int n_threads : {1, 2}) {
    const auto engine = loaded.Start(FfnMode::kPredicted, n_threads);
    const auto audit = [&](float level0, float level1) {
      engine->SetPredictorLevels(std::vector<float>{level0, level1});
      const Logits logits = FeedNew(*engine, 24, 3, 1);
      engine->SetAudit(4);
      CHECK(FeedNew(*engine, 24, 3, 1) == logits);
      engine->SetAudit(0);
      const FfnAudit audit = engine->TakeAudit();
      CHECK(audit.tokens == 6);
      return audit.missed;
    };
    CHECK(audit(kAll, kAll) == std::vector<double>{0, 0});
    const std::vector<double> none = audit(kNone, kNone), some = audit(-20, 0);
    CHECK(none[0] == doctest::Approx(6));
    CHECK(none[1] == doctest::Approx(6));
    CHECK(some[0] > 0);
    CHECK(some[0] < some[1]);
    CHECK(some[1] < 6);
    if (first.empty()) first = some;
    CHECK(some == first);
  }
}

TEST_CASE("predicted: no kernel silently is the reference") {
  const Loaded loaded(Relu(DType::kQ4_0));
  int seen = 0;
  for (const auto& [op, kernel] : loaded.Start(FfnMode::kPredicted, 1)->Kernels()) {
    seen += op.starts_with("predict");
    CHECK((kernel == "reference") == (ChooseIsa() == Isa::kScalar));
  }
  CHECK(seen == 2);
}

TEST_CASE("predicted: a gate with a bias is not for predictors") {
  const Loaded biased({.type = DType::kQ8_0, .activation = "relu", .biases = true}), plain({.type = DType::kQ8_0});
  CHECK(FindSparseFfns(biased.model, FfnMode::kPredicted).empty());
  CHECK(FindSparseFfns(plain.model, FfnMode::kPredicted).size() == 2);
}

}  // namespace thermocline
