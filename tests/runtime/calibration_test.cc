#include "runtime/calibration.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "runtime/quantizer.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/some_tokens.h"

namespace thermocline {

TEST_CASE("calibration: what products read is seen, all of it, and only while it is asked for") {
  const GgufFile file = TinyModel({.type = DType::kF32}).Open();
  const Model model = Model::FromGguf(file);
  Engine engine(file, model, {.n_ctx = 64, .n_threads = 2});
  const int sequence = engine.NewSequence();
  Batch batch;
  for (const TokenId token : SomeTokens(5))
    batch.push_back({token, sequence, static_cast<int>(batch.size()), RowKind::kPrompt, true});
  engine.Step(batch);
  const std::vector<float> before(engine.Logits(4).begin(), engine.Logits(4).end());

  std::atomic<int> seen = 0;
  std::vector<float> last;  // what the head reads for the last row
  engine.SetInputTap([&](const Op& op, int64_t row, std::span<const float> x) {
    ++seen;
    if (op.out == Slot::kLogits && row == 4) last.assign(x.begin(), x.end());
  });
  engine.Truncate(sequence, 0);
  engine.Step(batch);
  // Rows by products and activations: qkv, output, gate and up, activation, down of two layers, and the head.
  CHECK(seen == 5 * (2 * 5 + 1));
  CHECK(std::equal(before.begin(), before.end(), engine.Logits(4).begin()));
  // The head is the embedding: its rows by what was seen are the logits.
  const Tensor& head = *file.FindTensor("token_embd.weight");
  const std::vector<float> rows = ReadRows(file, head, 0, head.ne[1]);
  REQUIRE(last.size() == 64);
  double worst = 0;
  for (int64_t token = 0; token < head.ne[1]; ++token) {
    double logit = 0;
    for (int64_t i = 0; i < 64; ++i) logit += double{rows[static_cast<size_t>(token * 64 + i)]} * last[i];
    worst = std::max(worst, std::abs(logit - before[static_cast<size_t>(token)]));
  }
  CHECK(worst < 1e-4);

  engine.SetInputTap({});
  engine.Truncate(sequence, 0);
  engine.Step(batch);
  CHECK(seen == 5 * (2 * 5 + 1));
}

TEST_CASE("calibration: with feedback, outputs err less") {
  const GgufFile file = TinyModel({.type = DType::kF32}).Open();
  const Model model = Model::FromGguf(file);
  Engine engine(file, model, {.n_ctx = 64, .n_threads = 2});
  const auto tokens = SomeTokens(3000);
  // Of one layer's down projection: the error of its output over inputs of another text.
  WeightId id = 0;
  while (model.weights[static_cast<size_t>(id)].tensor->name != "blk.1.ffn_down.weight") ++id;
  const Feedback feedback = FeedbackOfInputs(model, id, engine, tokens, 64);
  CHECK(feedback.u.size() == 96 * 96);
  std::vector<float> inputs;
  engine.SetInputTap([&](const Op& op, int64_t, std::span<const float> x) {
    if (op.projections[0].weight == id) inputs.insert(inputs.end(), x.begin(), x.begin() + 96);
  });
  const int sequence = engine.NewSequence();
  const auto other = SomeTokens(60, 2);
  for (int i = 0; i < 60; ++i) engine.Step({{other[static_cast<size_t>(i)], sequence, i, RowKind::kPrompt, true}});
  const Tensor& tensor = *model.weights[static_cast<size_t>(id)].tensor;
  Team team(2);
  const auto error = [&](const Feedback* feedback) {
    const std::vector<uint8_t> bytes = EncodeTensor(file, tensor, DType::kQ4_0, feedback, team);
    std::vector<float> difference = ReadRows(file, tensor, 0, tensor.ne[1]), rounded(difference.size());
    Dequantize(DType::kQ4_0, bytes.data(), static_cast<int64_t>(rounded.size()), rounded.data());
    double sum = 0;
    for (size_t row = 0; row < difference.size(); row += 96)
      for (size_t x = 0; x < inputs.size(); x += 96) {
        double y = 0, square = 0;
        for (size_t i = 0; i < 96; ++i) {
          y += (double{difference[row + i]} - rounded[row + i]) * inputs[x + i];
          square += double{inputs[x + i]} * inputs[x + i];
        }
        sum += y * y / square;  // large inputs count no more than others
      }
    return sum;
  };
  const double plain = error(nullptr), fed = error(&feedback);
  MESSAGE("squared error of the output: plain ", plain, ", with feedback ", fed);
  CHECK(fed < 0.9 * plain);  // these inputs, of random weights, hardly go together
}

}  // namespace thermocline
