#include "predictor/predictor_training.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "models/dtype.h"
#include "models/quantize.h"
#include "predictor/sign_predictor.h"

namespace thermocline {
namespace {

constexpr int64_t kEmbd = 64, kFf = 128, kTrueRank = 12;

// A gate of low rank with a bit of noise, whose neurons fire seldom, each as often as its bias lets it.
struct Planted {
  std::vector<float> gate, bias;  // (kFf, kEmbd), (kFf)
  std::mt19937 random{7};
  std::normal_distribution<float> normal;

  Planted() : gate(kFf * kEmbd), bias(kFf) {
    std::vector<float> in(kTrueRank * kEmbd), out(kFf * kTrueRank);
    for (std::vector<float>* values : {&in, &out})
      for (float& value : *values) value = normal(random) / std::sqrt(static_cast<float>(kTrueRank));
    for (int64_t i = 0; i < kFf; ++i) {
      for (int64_t k = 0; k < kEmbd; ++k) {
        float& weight = gate[i * kEmbd + k] = 0.03f * normal(random);
        for (int64_t r = 0; r < kTrueRank; ++r) weight += out[i * kTrueRank + r] * in[r * kEmbd + k];
      }
      bias[i] = -4 + 2 * normal(random);
    }
  }

  FiringSamples Sample(int64_t n) {
    FiringSamples samples{kEmbd, kFf, n, std::vector<uint16_t>(n * kEmbd), std::vector<uint8_t>(n * kFf / 8)};
    std::vector<float> x(kEmbd);
    for (int64_t token = 0; token < n; ++token) {
      for (int64_t k = 0; k < kEmbd; ++k) x[k] = normal(random), samples.inputs[token * kEmbd + k] = FloatToHalf(x[k]);
      for (int64_t i = 0; i < kFf; ++i) {
        float sum = bias[i];
        for (int64_t k = 0; k < kEmbd; ++k) sum += gate[i * kEmbd + k] * x[k];
        samples.fired[(token * kFf + i) / 8] |= static_cast<uint8_t>((sum > 0) << i % 8);
      }
    }
    return samples;
  }
};

const TrainingRequest kRequest{.recall = 0.95, .max_bytes = 1 << 20, .gate_row_bytes = 68, .seed = 3};

bool Same(const NeuronPredictor& a, const NeuronPredictor& b) {
  return a.rank == b.rank && a.in == b.in && a.out == b.out && a.bias == b.bias && a.level == b.level;
}

}  // namespace

TEST_CASE("predictor training: what a low rank decides is learned, and holds for other samples") {
  Planted planted;
  const FiringSamples train = planted.Sample(4000), held_out = planted.Sample(1000), other = planted.Sample(1000);
  const TrainedPredictor trained = TrainPredictor(planted.gate, train, held_out, kRequest);
  CHECK(trained.held_out.neurons == 1000 * kFf);
  CHECK(trained.held_out.Recall() >= 0.95);
  CHECK(trained.held_out.Recall() < 0.951);
  const PredictionCount count = CountPredictions(trained.predictor, other);
  const double fires = static_cast<double>(count.fired) / static_cast<double>(count.neurons);
  CHECK(fires > 0.05);
  CHECK(fires < 0.25);
  CHECK(count.Recall() > 0.93);
  CHECK(count.Recall() < 0.97);
  CHECK(count.Precision() > 0.7);  // naming everything would have `fires`
  SUBCASE("and again the same") {
    CHECK(Same(TrainPredictor(planted.gate, train, held_out, kRequest).predictor, trained.predictor));
  }
  SUBCASE("better than by signs alone, which are better than nothing") {
    const SignPredictor signs(DType::kF32, reinterpret_cast<const uint8_t*>(planted.gate.data()), kFf, kEmbd);
    const double recall = signs.RecallAt(other, count.predicted);
    CHECK(recall < count.Recall() - 0.1);
    CHECK(recall > count.Computed() + 0.1);
  }
  SUBCASE("noise is not learned") {
    FiringSamples noise = planted.Sample(4000);
    std::mt19937 random(1);
    for (uint8_t& bits : noise.fired) bits = static_cast<uint8_t>(1 << random() % 8);
    FiringSamples more = noise;
    std::shuffle(more.fired.begin(), more.fired.end(), random);
    CHECK(TrainPredictor(planted.gate, noise, more, kRequest).held_out.Precision() < 0.2);
  }
}

TEST_CASE("predictor training: ranks stay within the bytes, and grow where that pays") {
  Planted planted;
  const FiringSamples train = planted.Sample(2000), held_out = planted.Sample(500);
  TrainingRequest request = kRequest;
  request.max_bytes = 1;
  CHECK(TrainPredictor(planted.gate, train, held_out, request).predictor.rank == kPredictorRankStep);
  request.max_bytes = PredictorBytes(64, kEmbd, kFf);
  request.gate_row_bytes = 1e9;  // any neuron that need not be read pays
  const NeuronPredictor grown = TrainPredictor(planted.gate, train, held_out, request).predictor;
  CHECK(grown.bytes() <= request.max_bytes);
  request.gate_row_bytes = 0;  // none does
  CHECK(TrainPredictor(planted.gate, train, held_out, request).predictor.rank == kPredictorRankStep);
}

TEST_CASE("predictor training: layers in which nothing or everything fires") {
  for (const uint8_t bits : {0, 255}) {
    Planted planted;
    FiringSamples samples = planted.Sample(300);
    std::fill(samples.fired.begin(), samples.fired.end(), bits);
    const TrainedPredictor trained = TrainPredictor(planted.gate, samples, samples, kRequest);
    CHECK(FiringEntropy(samples) == 0);
    CHECK(trained.held_out.fired == (bits ? trained.held_out.neurons : 0));
    CHECK(trained.held_out.Recall() >= 0.95);
    if (!bits) CHECK(trained.held_out.Computed() < 0.01);
  }
}

TEST_CASE("predictor training: levels have the recall that is asked for") {
  Planted planted;
  const FiringSamples samples = planted.Sample(500);
  NeuronPredictor predictor = TrainPredictor(planted.gate, samples, samples, kRequest).predictor;
  double before = 1;
  for (const double recall : {0.999, 0.9, 0.5, 0.1}) {
    predictor.level = LevelForRecall(predictor, samples, recall);
    const PredictionCount count = CountPredictions(predictor, samples);
    CHECK(count.Recall() == doctest::Approx(recall).epsilon(0.01));
    CHECK(count.Computed() < before);
    before = count.Computed();
  }
  predictor.level = LevelForRecall(predictor, samples, 1);
  CHECK(CountPredictions(predictor, samples).Recall() == 1);
}

TEST_CASE("sign predictor: counts agreeing signs; at a number of neurons the recall is what the best make") {
  const std::vector<float> gate = {1, -1, 2, -3, -1, -1, 1, 1};  // (2, 4)
  const SignPredictor signs(DType::kF32, reinterpret_cast<const uint8_t*>(gate.data()), 2, 4);
  const std::vector<uint16_t> input = {FloatToHalf(1), FloatToHalf(-2), FloatToHalf(3), FloatToHalf(4)};
  CHECK(signs.Agreeing(0, signs.SignsOf(input.data()).data()) == 3);
  CHECK(signs.Agreeing(1, signs.SignsOf(input.data()).data()) == 3 - 0);
  Planted planted;
  const FiringSamples samples = planted.Sample(200);
  const SignPredictor planted_signs(DType::kF32, reinterpret_cast<const uint8_t*>(planted.gate.data()), kFf, kEmbd);
  CHECK(planted_signs.RecallAt(samples, 0) == 0);
  CHECK(planted_signs.RecallAt(samples, 200 * kFf) == doctest::Approx(1));
  double before = 0;
  for (const int64_t n : {200, 1000, 5000, 20000}) {
    const double recall = planted_signs.RecallAt(samples, n);
    CHECK(recall > before);
    before = recall;
  }
}

}  // namespace thermocline
