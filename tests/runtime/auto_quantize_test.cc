#include "runtime/auto_quantize.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "models/error.h"
#include "runtime/calibration.h"
#include "runtime/perplexity.h"
#include "runtime/quantizer.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

constexpr int kContext = 64;

// What the model says itself, context by context: of such a text nobody's perplexity is lower.
std::vector<TokenId> Sample(Engine& engine, int n, uint32_t seed) {
  std::mt19937 random(seed);
  const int sequence = engine.NewSequence();
  std::vector<TokenId> tokens;
  while (std::ssize(tokens) < n) {
    const int position = static_cast<int>(tokens.size()) % kContext;
    if (position == 0) {
      engine.Truncate(sequence, 0);
      tokens.push_back(static_cast<TokenId>(random() % 288));
      continue;
    }
    engine.Step({{tokens.back(), sequence, position - 1, RowKind::kGenerated, true}});
    std::vector<double> weights;
    for (const float logit : engine.Logits(0)) weights.push_back(std::exp(double{logit}));
    tokens.push_back(static_cast<TokenId>(std::discrete_distribution<int>(weights.begin(), weights.end())(random)));
  }
  engine.FreeSequence(sequence);
  return tokens;
}

struct Fixture {
  // Rows of 64 and 256 weights; an embedding that is not the head.
  explicit Fixture(const TinyOptions& options = {.type = DType::kF16, .n_ff = 256, .tied = false})
      : file(TinyModel(options).Open()) {}

  GgufFile file;
  Model model = Model::FromGguf(file);
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  Engine engine{file, model, {.n_ctx = kContext, .n_threads = 2}};
  std::vector<TokenId> text = Sample(engine, 2048, 1), unseen = Sample(engine, 512, 2);
};

}  // namespace

TEST_CASE("judge: a model loses nothing against itself, and its perplexity is the measured one") {
  Fixture f;
  const Judge judge(f.engine, *f.tokenizer, f.unseen, kContext, RowKind::kPrompt);
  const Judgement same = judge.Measure(f.engine);
  CHECK(same.loss == 0);
  CHECK(same.loss_error == 0);
  CHECK(std::abs(same.kl) < 1e-5);
  CHECK(judge.n_scored() == 8 * 31);
  const auto expected = MeasurePerplexity(f.engine, *f.tokenizer, f.unseen, {.n_ctx = kContext}, {});
  CHECK(same.perplexity == doctest::Approx(expected.running.back()).epsilon(1e-9));
  CHECK(judge.reference_perplexity() == same.perplexity);
  CHECK_THROWS_WITH_AS(Judge(f.engine, *f.tokenizer, std::span(f.unseen).first(63), kContext, RowKind::kPrompt),
                       doctest::Contains("63 tokens, fewer than the 64"), Error);

  const GgufFile other_file = TinyModel({.type = DType::kF16, .n_ff = 256, .tied = false, .seed = 2}).Open();
  Engine other(other_file, Model::FromGguf(other_file), {.n_ctx = kContext, .n_threads = 2});
  const Judgement different = judge.Measure(other);
  CHECK(different.kl > 0.1);
  CHECK(different.loss_error > 0);
  CHECK(different.loss == doctest::Approx(different.perplexity / same.perplexity - 1).epsilon(1e-9));
}

TEST_CASE("auto_quantize: the smallest that was tried within the loss, each tensor of its type") {
  Fixture f;
  const Judge judge(f.engine, *f.tokenizer, f.unseen, kContext, RowKind::kGenerated);
  std::vector<Trial> trials;
  AutoOptions options{.max_loss = 0.01, .n_ctx = kContext, .n_threads = 2};
  options.on_trial = [&](const Trial& trial) { trials.push_back(trial); };
  // Halfway between the narrowest and the widest, so that a mixture must be found.
  {
    AutoOptions loose = options;
    loose.max_loss = 100;
    AutoQuantizer(f.file, f.model, nullptr, f.text, judge, loose).Search();
    REQUIRE(trials.size() == 3);
    CHECK(trials[0].recipe == "Q4_0, plain rounding");
    CHECK(trials[1].file_bytes == PlannedBytes(f.file, PlanTypes(f.file, f.model, DType::kQ8_0, true).types));
    CHECK(trials[2].file_bytes < trials[1].file_bytes);
    CHECK(trials[2].judgement.kl < trials[0].judgement.kl);
    CHECK(trials[1].judgement.kl < 0.1 * trials[2].judgement.kl);
  }
  const double low = trials[1].judgement.loss, high = trials[2].judgement.loss;
  REQUIRE(high > low);
  options.max_loss = low + 0.4 * (high - low);
  trials.clear();
  AutoQuantizer quantizer(f.file, f.model, nullptr, f.text, judge, options);
  const auto& [types, bytes] = quantizer.Search();
  CHECK(trials.size() > 3);
  uint64_t smallest = UINT64_MAX;
  for (const Trial& trial : trials)
    if (trial.judgement.loss <= options.max_loss && trial.recipe != "Q4_0, plain rounding")
      smallest = std::min(smallest, trial.file_bytes);
  CHECK(PlannedBytes(f.file, types) == smallest);
  CHECK(smallest < trials[1].file_bytes);
  // Narrow from some layer on, of rows as long.
  for (const int64_t k : {64, 256}) {
    std::vector<double> bits;
    for (const Weight& weight : f.model.weights)
      if (weight.matrix && weight.k == k && weight.tensor->name != "token_embd.weight")
        bits.push_back(BitsPerWeight(types[static_cast<size_t>(weight.tensor - f.file.tensors().data())]));
    CHECK(bits.size() > 1);
    CHECK(std::is_sorted(bits.rbegin(), bits.rend()));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    const Tensor& tensor = f.file.tensors()[i];
    if (tensor.ne[1] == 1)
      CHECK(types[i] == tensor.type);
    else
      CHECK(bytes[i].size() ==
            static_cast<size_t>(tensor.ne[0] / Info(types[i]).block * Info(types[i]).block_bytes * tensor.ne[1]));
  }
}

TEST_CASE("auto_quantize: an embedding that is the head, and learned positions, which stay") {
  Fixture f({.arch = "opt", .type = DType::kF16, .n_ff = 256});
  const Judge judge(f.engine, *f.tokenizer, f.unseen, kContext, RowKind::kGenerated);
  const Feedback embedding = FeedbackOfInputs(f.model, f.model.program.ops[0].weight, f.engine, f.text, kContext);
  std::vector<Trial> trials;
  AutoOptions options{.max_loss = 100, .n_ctx = kContext, .n_threads = 2};
  options.on_trial = [&](const Trial& trial) { trials.push_back(trial); };
  const auto own = [&](const char* name) {
    return static_cast<size_t>(f.file.FindTensor(name) - f.file.tensors().data());
  };
  {
    AutoQuantizer loose(f.file, f.model, &embedding, f.text, judge, options);
    const auto& [types, bytes] = loose.Search();
    CHECK(types[own("position_embd.weight")] == DType::kF16);
    CHECK(BitsPerWeight(types[own("token_embd.weight")]) == 4.5);
  }
  REQUIRE(trials.size() == 3);
  const double low = trials[1].judgement.loss, high = trials[2].judgement.loss;
  REQUIRE(high > low);
  options.max_loss = low + 0.4 * (high - low);
  trials.clear();
  AutoQuantizer quantizer(f.file, f.model, &embedding, f.text, judge, options);
  const auto& [types, bytes] = quantizer.Search();
  CHECK(trials.size() > 3);
  CHECK(types[own("position_embd.weight")] == DType::kF16);
  CHECK(PlannedBytes(f.file, types) < trials[1].file_bytes);
}

TEST_CASE("auto_quantize: where nothing is good enough, it says what 8 bits lose") {
  Fixture f;
  const Judge judge(f.engine, *f.tokenizer, f.unseen, kContext, RowKind::kGenerated);
  AutoQuantizer quantizer(f.file, f.model, nullptr, f.text, judge,
                          {.max_loss = -0.5, .n_ctx = kContext, .n_threads = 2});
  CHECK_THROWS_WITH_AS(quantizer.Search(), doctest::Contains("even 8 bits lose"), Error);
}

}  // namespace thermocline
