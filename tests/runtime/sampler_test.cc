#include "runtime/sampler.h"

#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "models/error.h"

using namespace thermocline;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SamplerParams Greedy() {
  SamplerParams params;
  params.temperature = 0;
  return params;
}

}  // namespace

TEST_CASE("sampler: survivors and probabilities equal NumPy's") {
  std::ifstream in(THERMOCLINE_TEST_DATA "/sampler/cases.json");
  const auto cases = nlohmann::json::parse(in);
  REQUIRE(cases.size() > 50);
  for (const auto& c : cases) {
    CAPTURE(c["name"].get<std::string>());
    std::vector<float> logits;
    for (const auto& logit : c["logits"]) logits.push_back(logit.is_null() ? -kInfinity : logit.get<float>());
    SamplerParams params;
    params.temperature = c["temperature"];
    params.top_k = c["top_k"];
    params.top_p = c["top_p"];
    params.min_p = c["min_p"];
    params.repeat_penalty = c["repeat_penalty"];
    const std::vector<TokenId> recent = c["last_tokens"];
    const std::vector<TokenId> ids = c["ids"];
    const std::vector<double> probabilities = c["probabilities"];

    Sampler sampler(params);
    const auto& candidates = sampler.Candidates(logits, recent);
    REQUIRE(candidates.size() == ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
      CHECK(candidates[i].id == ids[i]);
      CHECK(std::abs(candidates[i].probability - probabilities[i]) < 1e-6);
    }
  }
}

TEST_CASE("sampler: draws as often as the probabilities say") {
  SamplerParams params;
  params.temperature = 1;
  params.top_k = 0;
  params.top_p = 1;
  params.min_p = 0;
  params.seed = 7;
  Sampler sampler(params);
  const std::vector<float> logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  constexpr int kDraws = 20000;
  int counts[3] = {};
  for (int i = 0; i < kDraws; i++) counts[sampler.Sample(logits, {})]++;
  // Five standard deviations of a binomial count.
  const double bound = 5 * std::sqrt(0.25 * kDraws);
  CHECK(std::abs(counts[0] - 0.5 * kDraws) < bound);
  CHECK(std::abs(counts[1] - 0.3 * kDraws) < bound);
  CHECK(std::abs(counts[2] - 0.2 * kDraws) < bound);
}

TEST_CASE("sampler: the same seed draws the same, on every machine") {
  SamplerParams params;
  params.top_p = 1;
  params.min_p = 0;
  params.seed = 42;
  Sampler a(params), b(params);
  params.seed = 43;
  Sampler c(params);
  const std::vector<float> logits(32, 0.0f);  // 32 equal ones: the draw is the upper five bits of the generator
  std::mt19937_64 bits(42);                   // whose output the standard fixes
  bool differs = false;
  for (int i = 0; i < 100; i++) {
    const TokenId drawn = a.Sample(logits, {});
    CHECK(drawn == static_cast<TokenId>(bits() >> 59));
    CHECK(drawn == b.Sample(logits, {}));
    differs |= drawn != c.Sample(logits, {});
  }
  CHECK(differs);
}

TEST_CASE("sampler: greedy takes the largest logit, of equals the first") {
  Sampler sampler(Greedy());
  CHECK(sampler.Sample(std::vector<float>{1, 3, 2, 3}, {}) == 1);
  CHECK(sampler.Sample(std::vector<float>{-kInfinity, -5, -kInfinity}, {}) == 1);
}

TEST_CASE("sampler: the repeat penalty looks back 64 tokens and counts each once") {
  auto params = Greedy();
  params.repeat_penalty = 2;
  Sampler sampler(params);
  const std::vector<float> logits = {3, 2, -1};
  std::vector<TokenId> recent(1, 0);
  CHECK(sampler.Sample(logits, recent) == 1);  // 1.5 against 2
  recent.resize(kRepeatWindow, 2);
  CHECK(sampler.Sample(logits, recent) == 1);  // the first of 64 still counts
  recent.push_back(2);
  CHECK(sampler.Sample(logits, recent) == 0);  // the first of 65 does not
  CHECK(sampler.Candidates(std::vector<float>{4, 1.5f}, std::vector<TokenId>{0, 0, 0})[0].id == 0);  // 2, not 0.5
}

TEST_CASE("sampler: logits that are no numbers are an error, single ones are never drawn") {
  Sampler sampler(SamplerParams{});
  const float nan = std::nanf("");
  CHECK(sampler.Sample(std::vector<float>{nan, 1, nan}, {}) == 1);
  CHECK_THROWS_AS(sampler.Sample(std::vector<float>{nan, nan}, {}), Error);
  CHECK_THROWS_AS(sampler.Sample(std::vector<float>{-kInfinity, -kInfinity}, {}), Error);
  CHECK_THROWS_AS(sampler.Sample(std::vector<float>{1, kInfinity}, {}), Error);
}
