// Heat that follows the user, over engines of tiny models with an emulated device.
#include "runtime/adaptation.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <thread>

#include "gpu/emulated_device.h"
#include "models/error.h"
#include "predictor/heat_order.h"
#include "runtime/emulated_ops.h"
#include "runtime/follow.h"
#include "runtime/profile.h"
#include "runtime/split.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"

namespace thermocline {
namespace {

struct Subject {
  GgufWriter writer = TinyModel({.type = DType::kQ8_0, .n_layer = 4, .n_ff = 576, .activation = "relu", .seed = 3});
  GgufFile file = writer.Open();
  Model model = Model::FromGguf(file);
  std::shared_ptr<EmulatedDevice> device =
      std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30}, MakeEmulatedOps());

  Placement SomeHot() const {
    Placement placement = AllOnCpu(model.config);
    for (LayerPlacement& layer : placement.layers) layer.n_hot = 192;
    return placement;
  }
  std::unique_ptr<Engine> Start(const Placement& placement, std::shared_ptr<EmulatedDevice> on) const {
    EngineOptions options{.n_ctx = 192, .n_threads = 2, .max_sequences = 2};
    options.load.ffn = FfnMode::kExact;
    options.load.count_firings = true;
    options.device = {.device = std::move(on), .placement = placement, .stream = {.min_rows = 100}};
    options.reopen = [this] { return writer.Open(); };
    return std::make_unique<Engine>(file, model, options);
  }
  std::unique_ptr<Engine> Start(const Placement& placement) const {
    return Start(placement, std::make_shared<EmulatedDevice>(EmulatedDeviceOptions{.budget_bytes = int64_t{1} << 30},
                                                             MakeEmulatedOps()));
  }
};

// Until all has moved or moving has failed, which it returns. A layer that is stopped is staged anew, however often:
// pauses grow, until one is long enough for a layer on any machine.
std::string Wait(Adaptation& adaptation) {
  std::string failure;
  for (auto pause = std::chrono::milliseconds(20); pause < std::chrono::minutes(1); pause *= 2) {
    adaptation.Begin();
    std::this_thread::sleep_for(pause);
    failure = adaptation.End();
    if (!failure.empty() || adaptation.n_waiting() == 0) break;
  }
  return failure;
}

double Hits(const Firings& firings, const Placement& placement) {
  double hot = 0, all = 0;
  for (size_t layer = 0; layer < firings.fired.size(); ++layer)
    for (int64_t i = 0; i < std::ssize(firings.fired[layer]); ++i) {
      const NeuronOrder* order = placement.orders.empty() ? nullptr : placement.orders[layer].get();
      const uint32_t fired = firings.fired[layer][order ? (*order)[i] : i];
      all += fired;
      hot += i < placement.layers[layer].n_hot ? fired : 0;
    }
  return hot / all;
}

}  // namespace

TEST_CASE("adaptation: what fires moves to the device between answers, which stay right") {
  const Subject subject;
  const auto engine = subject.Start(subject.SomeHot(), subject.device);
  Adaptation adaptation(*engine, subject.model, FfnMode::kExact, EmptyHeat(subject.file, subject.model));
  CHECK(adaptation.Describe() == "");
  (void)Play(*engine, RowKind::kGenerated);
  adaptation.AfterAnswer();
  CHECK(adaptation.n_waiting() == 4);
  CHECK(adaptation.Describe().find("when 4 layers have moved") != std::string::npos);
  CHECK(adaptation.recent().tokens == 150 + 9 + 6);
  REQUIRE(Wait(adaptation) == "");
  CHECK(adaptation.n_moved() == 4);

  Placement moved = subject.SomeHot();
  moved.orders = engine->placement().orders;
  const Logits logits = Play(*engine, RowKind::kGenerated);
  CHECK(logits == Play(*subject.Start(moved), RowKind::kGenerated));
  const Firings firings = engine->TakeFirings();
  CHECK(Hits(firings, moved) > Hits(firings, subject.SomeHot()) + 0.03);
}

TEST_CASE("adaptation: the engine is taken back at any time, and answers between any two layers") {
  const Subject subject;
  const auto still = subject.Start(subject.SomeHot());
  const Logits expected = Play(*still, RowKind::kGenerated);
  const auto engine = subject.Start(subject.SomeHot(), subject.device);
  Adaptation adaptation(*engine, subject.model, FfnMode::kExact, EmptyHeat(subject.file, subject.model));
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    const Logits logits = Play(*engine, RowKind::kGenerated);
    CHECK(Compare(expected, logits, 1e-3).worst <= 3e-2);  // down is rounded in groups of the order
    adaptation.AfterAnswer();
    adaptation.Begin();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    CHECK(adaptation.End() == "");
    if (i % 8 == 7) {
      Placement now = subject.SomeHot();
      now.orders = engine->placement().orders;
      if (!now.orders.empty())
        CHECK(Play(*engine, RowKind::kGenerated) == Play(*subject.Start(now), RowKind::kGenerated));
    }
  }
  REQUIRE(Wait(adaptation) == "");
  CHECK(adaptation.n_moved() > 0);
}

TEST_CASE("adaptation: a device that is lost, and a file that is gone, end it, and answers stay right") {
  const Subject subject;
  const auto engine = subject.Start(subject.SomeHot(), subject.device);
  Adaptation adaptation(*engine, subject.model, FfnMode::kExact, EmptyHeat(subject.file, subject.model));
  (void)Play(*engine, RowKind::kGenerated);
  adaptation.AfterAnswer();
  subject.device->Lose();
  const std::string failure = Wait(adaptation);
  CAPTURE(failure);
  CHECK(failure.find("lost") != std::string::npos);
  CHECK(adaptation.n_waiting() == 0);
  CHECK_THROWS_AS(Play(*engine, RowKind::kGenerated), SequencesLost);
  engine->FreeSequence(0);
  engine->FreeSequence(1);
  CHECK(Play(*engine, RowKind::kGenerated) ==
        Play(*subject.Start(AllOnCpu(subject.model.config)), RowKind::kGenerated));
  adaptation.AfterAnswer();
  CHECK(adaptation.n_waiting() == 0);
  CHECK(adaptation.recent().tokens > 2 * 165 * 0.8);
}

TEST_CASE("adaptation: what the CPU reads is what its half has, but for the neurons that are skipped") {
  const Subject subject;
  const CpuReads all = ReadsOf(subject.model, FfnMode::kDense);
  const CpuReads exact = ReadsOf(Split(subject.model, subject.SomeHot()).cpu, FfnMode::kExact);
  CHECK(exact.always < all.always);
  CHECK(exact.always > all.always / 4);
  CHECK(all.neuron_bytes == std::vector<double>(4, 0));
  for (const double bytes : exact.neuron_bytes) CHECK(bytes > 2 * subject.model.config.n_embd);
}

TEST_CASE("follow: on a text whose topic changes, heat that follows beats heat that is kept") {
  // Two topics with hot neurons of their own, and some that both have; 20 answers of each.
  std::mt19937 random(2);
  const auto answers = [&](int topic) {
    std::vector<Firings> all;
    for (int i = 0; i < 20; ++i) {
      Firings& answer = all.emplace_back(Firings{kAnswerTokens, std::vector(2, std::vector<uint32_t>(512))});
      for (auto& layer : answer.fired)
        for (int j = 0; j < 512; ++j) {
          const double frequency = j % 8 == 0 ? 0.9 : j % 8 == 1 + topic ? 0.8 : 0.05;
          layer[j] = std::binomial_distribution<uint32_t>(kAnswerTokens, frequency)(random);
        }
    }
    return all;
  };
  const std::vector<Firings> first = answers(0), second = answers(1);
  const FollowedHits changed = FollowHeat(first, second, 0.25, 1, 1000, 100);
  CHECK(changed.own > changed.kept + 0.2);
  CHECK(changed.followed > changed.kept + 0.15);
  CHECK(changed.followed <= changed.own);
  CHECK(changed.n_replans > 0);
  CHECK(changed.always > changed.kept + 0.15);
  CHECK(changed.most_gain > 0.05);
  CHECK(changed.n_answers == 20);
  // The same topic goes on, or all neurons move as one: nothing to follow.
  const std::vector<Firings> more = answers(0);
  const FollowedHits same = FollowHeat(first, more, 0.25, 1, 1000, 100);
  CHECK(same.n_replans == 0);
  CHECK(same.followed == same.kept);
  CHECK(same.most_gain < 0.05);
  CHECK(same.own < same.kept + 0.01);
  CHECK(FollowHeat(first, second, 0.25, 64, 1000, 100).n_replans == 0);
}

TEST_CASE("follow: answers are counted as profile counts") {
  const Subject subject;
  std::vector<TokenId> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back(TokenAt(0, i));
  const auto dense = [&] {
    return std::make_unique<Engine>(subject.file, subject.model, EngineOptions{.n_ctx = 128, .n_threads = 2});
  };
  Heat heat = BeginHeat(subject.file, subject.model, tokens);
  const auto profiled = dense(), counted = dense();
  CountNeurons(*profiled, subject.model, tokens, {}, heat);
  const std::vector<Firings> answers = CountAnswers(*counted, subject.model, tokens, std::vector<float>(4));
  CHECK(answers.size() == 5);
  CHECK(answers.back().tokens == 300 - 4 * kAnswerTokens);
  for (size_t layer = 0; layer < 4; ++layer)
    for (size_t i = 0; i < 576; ++i) {
      uint32_t sum = 0;
      for (const Firings& answer : answers) sum += answer.fired[layer][i];
      CHECK(sum == heat.layers[layer].fired[i]);
    }
}

}  // namespace thermocline
