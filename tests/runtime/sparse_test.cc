// FFNs over bundles in whole models: what is skipped changes no bit, and neither do neighbours and threads.
#include <doctest/doctest.h>

#include <algorithm>

#include "cpu/isa.h"
#include "models/error.h"
#include "runtime/engine.h"
#include "runtime/sparsity.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/tiny_model.h"

namespace thermocline {
namespace {

using Logits = std::vector<std::vector<float>>;

struct Loaded {
  GgufFile file;
  Model model;
  explicit Loaded(const TinyOptions& options) : file(TinyModel(options).Open()), model(Model::FromGguf(file)) {}

  std::unique_ptr<Engine> Start(FfnMode ffn, int n_threads, int max_sequences = 1, int n_ctx = 64) const {
    EngineOptions options{.n_ctx = n_ctx, .n_threads = n_threads, .max_sequences = max_sequences};
    options.load.ffn = ffn;
    return std::make_unique<Engine>(file, model, options);
  }
};

// n_ff: three slices, the last of half a group pair.
TinyOptions Relu(DType type) { return {.type = type, .n_embd = 160, .n_ff = 544, .activation = "relu"}; }

std::vector<TokenId> SomeTokens(int n, int seed) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < n; ++i) tokens.push_back((i * 37 + seed * 11 + 5) % 280);
  return tokens;
}

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kF16};

}  // namespace

TEST_CASE("sparse: generated rows skip silent neurons without a bit of difference") {
  for (const DType type : kTypes) {
    CAPTURE(Info(type).name);
    const Loaded loaded(Relu(type));
    const std::vector<TokenId> tokens = SomeTokens(40, 0);
    Logits first;
    for (const FfnMode mode : {FfnMode::kBundleDense, FfnMode::kExact})
      for (const int n_threads : {1, 2}) {
        const auto engine = loaded.Start(mode, n_threads);
        const Logits logits = test::Feed(*engine, engine->NewSequence(), tokens, 1, RowKind::kGenerated);
        const NeuronCount count = engine->TakeNeuronCount();
        CHECK(count.neurons == 2 * 544 * 40);
        CHECK(count.active > count.neurons / 4);
        CHECK(count.active < count.neurons * 3 / 4);
        CHECK(count.read == (mode == FfnMode::kExact ? count.active : count.neurons));
        if (first.empty()) first = logits;
        CHECK(logits == first);
      }
  }
}

TEST_CASE("sparse: a generated row's neighbours change nothing, prompt rows among them") {
  for (const DType type : {DType::kQ4_0, DType::kQ8_0}) {
    const Loaded loaded(Relu(type));
    const auto alone = loaded.Start(FfnMode::kExact, 1);
    std::vector<Logits> expected;
    for (int i = 0; i < 9; ++i) {
      const int sequence = alone->NewSequence();
      expected.push_back(test::Feed(*alone, sequence, SomeTokens(12, i), 1, RowKind::kGenerated));
      alone->FreeSequence(sequence);
    }
    const int last = alone->NewSequence();
    const Logits prompt = test::Feed(*alone, last, SomeTokens(24, 9), 24);
    for (const int n_threads : {1, 2}) {
      const auto together = loaded.Start(FfnMode::kExact, n_threads, 10);
      int sequences[10];
      for (int& sequence : sequences) sequence = together->NewSequence();
      for (int step = 0; step < 12; ++step) {
        Batch batch;
        for (int i = 0; i < 9; ++i) {
          batch.push_back({SomeTokens(12, i)[step], sequences[i], step, RowKind::kGenerated, true});
          if (i != 4) continue;
          for (int j = 2 * step; j < 2 * step + 2; ++j)
            batch.push_back({SomeTokens(24, 9)[j], sequences[9], j, RowKind::kPrompt, true});
        }
        together->Step(batch);
        int at = 0;
        for (int i = 0; i < 9; ++i) {
          const auto row = together->Logits(at++);
          CHECK(std::vector<float>(row.begin(), row.end()) == expected[i][step]);
          for (int j = 2 * step; i == 4 && j < 2 * step + 2; ++j) {
            const auto prompt_row = together->Logits(at++);
            CHECK(std::vector<float>(prompt_row.begin(), prompt_row.end()) == prompt[j]);
          }
        }
      }
    }
  }
}

TEST_CASE("sparse: 20 prompts go on for 256 tokens as over dense arithmetic, alone and among 8 others") {
  constexpr int kPrompts = 20, kPromptTokens = 7, kAnswer = 256, kOthers = 8;
  const Loaded loaded(Relu(DType::kQ4_0));
  // Greedy answers to prompts [first, first + n) side by side, with the bits of their logits.
  const auto answer = [](Engine& engine, int first, int n) {
    std::vector<Logits> logits(n);
    std::vector<int> sequences;
    for (int i = 0; i < n; ++i) {
      sequences.push_back(engine.NewSequence());
      logits[i].push_back(
          test::Feed(engine, sequences[i], SomeTokens(kPromptTokens, (first + i) % kPrompts), kPromptTokens).back());
    }
    for (int step = 0; step < kAnswer; ++step) {
      Batch batch;
      for (int i = 0; i < n; ++i) {
        const std::vector<float>& last = logits[i].back();
        const auto token = static_cast<TokenId>(std::max_element(last.begin(), last.end()) - last.begin());
        batch.push_back({token, sequences[i], kPromptTokens + step, RowKind::kGenerated, true});
      }
      engine.Step(batch);
      for (int i = 0; i < n; ++i) logits[i].emplace_back(engine.Logits(i).begin(), engine.Logits(i).end());
    }
    for (const int sequence : sequences) engine.FreeSequence(sequence);
    return logits;
  };
  const auto dense = loaded.Start(FfnMode::kBundleDense, 2, 1, 320);
  const auto alone = loaded.Start(FfnMode::kExact, 1, 1, 320);
  const auto together = loaded.Start(FfnMode::kExact, 2, 1 + kOthers, 320);
  const int n = ChooseIsa() == Isa::kScalar ? 2 : kPrompts;  // the reference is slow
  for (int prompt = 0; prompt < n; ++prompt) {
    CAPTURE(prompt);
    const Logits expected = answer(*dense, prompt, 1)[0];
    CHECK(answer(*alone, prompt, 1)[0] == expected);
    if (prompt % 5 == 0) CHECK(answer(*together, prompt, 1 + kOthers)[0] == expected);
  }
}

namespace {

// Gated by something else than ReLU. n_ff: three slices.
std::vector<TinyOptions> Smooth() {
  return {{.type = DType::kQ4_0, .n_embd = 160, .n_ff = 544},
          {.arch = "gemma3", .type = DType::kQ8_0, .n_embd = 96, .n_ff = 544},
          Relu(DType::kQ4_1)};
}

Logits FeedWithLevels(Engine& engine, std::vector<float> levels, int n = 24) {
  engine.SetNeuronLevels(levels);
  const int sequence = engine.NewSequence();
  const Logits logits = test::Feed(engine, sequence, SomeTokens(n, 3), 1, RowKind::kGenerated);
  engine.FreeSequence(sequence);
  return logits;
}

}  // namespace

TEST_CASE("sparse: neurons under the level of their layer are left out, and that is all") {
  for (const TinyOptions& options : Smooth()) {
    CAPTURE(options.arch);
    const Loaded loaded(options);
    const auto dense = loaded.Start(FfnMode::kBundleDense, 1);
    const Logits all = FeedWithLevels(*dense, {0, 0});
    int64_t active = dense->TakeNeuronCount().neurons;
    for (const std::vector<float>& levels : {std::vector<float>{0, 0}, {0.03f, 0.1f}, {0.3f, 0}, {1e30f, 1e30f}}) {
      CAPTURE(levels[0]);
      const Logits expected = FeedWithLevels(*dense, levels);
      const int64_t wanted = dense->TakeNeuronCount().active;
      CHECK((expected == all) == (levels[0] == 0));
      for (const int n_threads : {1, 2}) {
        const auto sparse = loaded.Start(FfnMode::kThreshold, n_threads);
        CHECK(FeedWithLevels(*sparse, levels) == expected);
        const NeuronCount count = sparse->TakeNeuronCount();
        CHECK(count.active == wanted);
        CHECK(count.read == wanted);
        CHECK(count.active <= active);
      }
    }
  }
}

TEST_CASE("sparse: levels do not touch prompt rows, nor neighbours of a generated row its logits") {
  const Loaded loaded(Smooth()[0]);
  const auto engine = loaded.Start(FfnMode::kThreshold, 2, 4);
  const std::vector<float> none = {0, 0}, some = {0.1f, 0.2f};
  std::vector<Logits> expected;
  for (int i = 0; i < 3; ++i) {
    engine->SetNeuronLevels(some);
    const int sequence = engine->NewSequence();
    expected.push_back(test::Feed(*engine, sequence, SomeTokens(10, i), 1, RowKind::kGenerated));
    engine->FreeSequence(sequence);
  }
  Logits prompts[2];
  for (int i = 0; i < 2; ++i) {
    engine->SetNeuronLevels(i ? some : none);
    const int sequence = engine->NewSequence();
    prompts[i] = test::Feed(*engine, sequence, SomeTokens(20, 7), 20);
    engine->FreeSequence(sequence);
  }
  CHECK(prompts[0] == prompts[1]);
  int sequences[3];
  for (int& sequence : sequences) sequence = engine->NewSequence();
  for (int step = 0; step < 10; ++step) {
    Batch batch;
    for (int i = 0; i < 3; ++i)
      batch.push_back({SomeTokens(10, i)[step], sequences[i], step, RowKind::kGenerated, true});
    engine->Step(batch);
    for (int i = 0; i < 3; ++i)
      CHECK(std::vector<float>(engine->Logits(i).begin(), engine->Logits(i).end()) == expected[i][step]);
  }
}

TEST_CASE("sparse: an audit says what was left out and changes nothing") {
  for (const TinyOptions& options : Smooth()) {
    CAPTURE(options.arch);
    const Loaded loaded(options);
    std::vector<FfnAudit> first;
    for (const int n_threads : {1, 2}) {
      const auto engine = loaded.Start(FfnMode::kThreshold, n_threads);
      const auto audit = [&](std::vector<float> levels) {
        const Logits logits = FeedWithLevels(*engine, levels);
        engine->SetAudit(4);
        CHECK(FeedWithLevels(*engine, levels) == logits);
        engine->SetAudit(0);
        const FfnAudit audit = engine->TakeAudit();
        CHECK(audit.tokens == 6);
        CHECK(engine->TakeAudit().tokens == 0);
        return audit;
      };
      CHECK(audit({0, 0}).missed == std::vector<double>{0, 0});
      const FfnAudit none = audit({1e30f, 1e30f}), some = audit({0.02f, 0.2f});
      CHECK(none.missed[0] == doctest::Approx(6));
      CHECK(none.missed[1] == doctest::Approx(6));
      CHECK(some.missed[0] > 0);
      CHECK(some.missed[0] < some.missed[1]);
      CHECK(some.missed[1] < 3);
      if (first.empty()) first = {some};
      CHECK(some.missed == first[0].missed);
      engine->SetAudit(1);
      const int sequence = engine->NewSequence();
      test::Feed(*engine, sequence, SomeTokens(20, 7), 20);
      CHECK(engine->TakeAudit().tokens == 0);  // prompt rows
    }
  }
}

TEST_CASE("sparse: prompt rows give the bits that they give over panels where the weights are the file's") {
  if (ChooseIsa() == Isa::kScalar) return;  // whose sums are rounded where a panel ends
  for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0}) {
    CAPTURE(Info(type).name);
    const Loaded loaded(Relu(type));
    const std::vector<TokenId> tokens = SomeTokens(60, 1);
    const auto dense = loaded.Start(FfnMode::kDense, 2), sparse = loaded.Start(FfnMode::kExact, 2);
    CHECK(test::Feed(*sparse, sparse->NewSequence(), tokens, 60) ==
          test::Feed(*dense, dense->NewSequence(), tokens, 60));
    CHECK(dense->TakeNeuronCount().neurons == 0);
  }
}

TEST_CASE("sparse: generated rows are near those over panels") {
  for (const DType type : kTypes) {
    CAPTURE(Info(type).name);
    const Loaded loaded(Relu(type));
    const std::vector<TokenId> tokens = SomeTokens(20, 2);
    const auto dense = loaded.Start(FfnMode::kDense, 1), sparse = loaded.Start(FfnMode::kExact, 1);
    const Logits expected = test::Feed(*dense, dense->NewSequence(), tokens, 1, RowKind::kGenerated);
    const Logits logits = test::Feed(*sparse, sparse->NewSequence(), tokens, 1, RowKind::kGenerated);
    double difference = 0, largest = 0;
    for (size_t i = 0; i < logits.size(); ++i)
      for (size_t j = 0; j < logits[i].size(); ++j) {
        difference = std::max(difference, std::fabs(double{logits[i][j]} - expected[i][j]));
        largest = std::max(largest, std::fabs(double{expected[i][j]}));
      }
    // Requantized to 8 bits: all of F16, and down of the five-bit types.
    const bool requantized = type == DType::kF16 || type == DType::kQ5_0 || type == DType::kQ5_1;
    CHECK(difference <= (requantized ? 3e-2 : 1e-3) * largest);
    CHECK(difference > 0);
  }
}

TEST_CASE("sparse: no kernel silently is the reference") {
  const Loaded loaded(Relu(DType::kQ4_0));
  bool seen = false;
  for (const auto& [op, kernel] : loaded.Start(FfnMode::kExact, 1)->Kernels()) {
    seen |= op.starts_with("bundles");
    CHECK((kernel == "reference") == (ChooseIsa() == Isa::kScalar));
  }
  CHECK(seen);
}

TEST_CASE("sparse: what cannot be sparse is not") {
  const Loaded silu({.type = DType::kQ8_0}), biased({.type = DType::kQ8_0, .activation = "relu", .biases = true});
  for (const Loaded* loaded : {&silu, &biased}) {
    CHECK(FindSparseFfns(loaded->model, FfnMode::kExact).empty());
    const auto engine = loaded->Start(FfnMode::kExact, 1);
    test::Feed(*engine, engine->NewSequence(), SomeTokens(3, 0), 1, RowKind::kGenerated);
    CHECK(engine->TakeNeuronCount().neurons == 0);
  }
  CHECK(FindSparseFfns(Loaded(Relu(DType::kQ4_0)).model, FfnMode::kExact).size() == 2);
  CHECK(FindSparseFfns(silu.model, FfnMode::kThreshold).size() == 2);
  CHECK(FindSparseFfns(biased.model, FfnMode::kThreshold).empty());
}

}  // namespace thermocline
