#include "predictor/heat.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "models/error.h"
#include "models/quantize.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

class TempFile {
 public:
  explicit TempFile(std::span<const uint8_t> bytes) {
    std::ofstream(path_, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  }
  ~TempFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  static inline int count_ = 0;
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / fmt::format("thermocline-heat-{}-{}", getpid(), ++count_);
};

struct Subject {
  GgufFile file = TinyModel({}).Open();
  Model model = Model::FromGguf(file);

  Heat MakeHeat() const {
    Heat heat;
    heat.identity = file.Identity();
    heat.text_hash = 42;
    heat.model = "tiny";
    heat.activation = model.config.arch.activation;
    heat.n_ff = model.config.n_ff;
    heat.n_tokens = 1000;
    heat.n_counted = 900;
    heat.targets = {0.25f, 0.5f};
    for (int i = 0; i < model.config.n_layer; ++i) {
      LayerHeat& layer = heat.layers.emplace_back();
      layer.levels = {0.1f, 0.2f * static_cast<float>(i + 1)};
      for (int64_t j = 0; j < 2 * heat.n_ff; ++j) layer.fired.push_back(static_cast<double>((j * 7 + i) % 901));
      for (int64_t j = 0; j < heat.n_ff; ++j) layer.sum_abs.push_back(0.5 * static_cast<double>(j));
      layer.histogram.assign(kHeatBins, 0);
      layer.histogram[HeatBin(1.0f)] = 300;
      layer.histogram[HeatBin(2.0f)] = 100;
    }
    heat.sensitivity = {0.5f, -1};
    heat.thresholds = {{0.1f, -0.001f, {0.01f, 0.02f}, {0.001f, 0.002f}}, {0.5f, 0.3f, {0.1f, 0.2f}, {0.03f, 0.04f}}};
    heat.chosen_threshold = 0;
    HeatPredictors& predictors = heat.predictors;
    predictors.training_hash = 43;
    for (int i = 0; i < model.config.n_layer; ++i) {
      const int64_t rank = 32 * (i + 1);
      NeuronPredictor& layer = predictors.layers.emplace_back();
      layer = {rank, Blocks(rank * model.config.n_embd), Blocks(heat.n_ff * rank), {}, -0.5f * static_cast<float>(i)};
      for (int64_t j = 0; j < heat.n_ff; ++j) layer.bias.push_back(0.25f * static_cast<float>(j));
    }
    predictors.firing_levels = {0.1f, 0.2f};
    predictors.recall = {0.95f, 0.96f};
    predictors.computed = {0.3f, 0.4f};
    predictors.missed = {0.01f, 0.02f};
    predictors.rise = 0.005f;
    heat.recent.tokens = 60.5;
    for (int i = 0; i < model.config.n_layer; ++i) {
      std::vector<float>& recent = heat.recent.fired.emplace_back();
      for (int64_t j = 0; j < heat.n_ff; ++j) recent.push_back(0.25f * static_cast<float>((j + i) % 240));
    }
    return heat;
  }
  static std::vector<uint8_t> Blocks(int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 29) - 14;
    std::vector<uint8_t> blocks(values.size() / 32 * 34);
    Quantize(DType::kQ8_0, values.data(), nullptr, n, blocks.data());
    return blocks;
  }
  Heat Read(std::span<const uint8_t> bytes) const {
    const TempFile at(bytes);
    return ReadHeat(at.path(), file, model.config);
  }
  std::string Complaint(std::span<const uint8_t> bytes) const {
    try {
      Read(bytes);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
};

}  // namespace

TEST_CASE("heat: what is written is what is read") {
  const Subject subject;
  const Heat heat = subject.MakeHeat(), read = subject.Read(SerializeHeat(heat));
  CHECK(read.identity == heat.identity);
  CHECK(read.text_hash == 42);
  CHECK(read.model == "tiny");
  CHECK(read.n_tokens == 1000);
  CHECK(read.n_counted == 900);
  CHECK(read.targets == heat.targets);
  REQUIRE(read.layers.size() == heat.layers.size());
  for (size_t i = 0; i < read.layers.size(); ++i) {
    CHECK(read.layers[i].levels == heat.layers[i].levels);
    CHECK(read.layers[i].fired == heat.layers[i].fired);
    CHECK(read.layers[i].sum_abs == heat.layers[i].sum_abs);
    CHECK(read.layers[i].histogram == heat.layers[i].histogram);
  }
  REQUIRE(read.thresholds.size() == 2);
  CHECK(read.thresholds[0].rise == -0.001f);
  CHECK(read.thresholds[1].levels == heat.thresholds[1].levels);
  CHECK(read.thresholds[1].missed == heat.thresholds[1].missed);
  CHECK(read.sensitivity == heat.sensitivity);
  CHECK(read.chosen_threshold == 0);
  CHECK(read.recent.tokens == 60.5);
  CHECK(read.recent.fired == heat.recent.fired);
  CHECK(read.Frequency(1, 1)[3] == doctest::Approx(heat.layers[1].fired[read.n_ff + 3] / 900));
  double fired = 0;
  for (int64_t i = 0; i < read.n_ff; ++i) fired += heat.layers[1].fired[i];
  CHECK(read.ActiveShare(1, 0) == doctest::Approx(fired / 900 / static_cast<double>(read.n_ff)));
  REQUIRE(read.predictors.complete());
  CHECK(read.predictors.training_hash == 43);
  for (size_t i = 0; i < heat.layers.size(); ++i) {
    const NeuronPredictor &a = read.predictors.layers[i], &b = heat.predictors.layers[i];
    CHECK(a.rank == b.rank);
    CHECK(a.in == b.in);
    CHECK(a.out == b.out);
    CHECK(a.bias == b.bias);
    CHECK(a.level == b.level);
  }
  CHECK(read.predictors.firing_levels == heat.predictors.firing_levels);
  CHECK(read.predictors.recall == heat.predictors.recall);
  CHECK(read.predictors.computed == heat.predictors.computed);
  CHECK(read.predictors.missed == heat.predictors.missed);
  CHECK(read.predictors.rise == 0.005f);
  Heat some = heat;  // in training
  some.predictors.layers[1] = {};
  some.predictors.missed.clear();
  const Heat read_some = subject.Read(SerializeHeat(some));
  CHECK(!read_some.predictors.complete());
  CHECK(read_some.predictors.layers[0].rank == 32);
  CHECK(read_some.predictors.layers[1].rank == 0);
  Heat bare = heat;
  bare.predictors = {};
  bare.thresholds.clear();
  bare.sensitivity.clear();
  bare.recent = {};
  CHECK(subject.Read(SerializeHeat(bare)).thresholds.empty());
  CHECK(subject.Read(SerializeHeat(bare)).recent.fired.empty());
}

TEST_CASE("heat: no bit may flip, no byte may be missing") {
  const Subject subject;
  const std::vector<uint8_t> good = SerializeHeat(subject.MakeHeat());
  for (size_t i = 0; i < good.size(); i += i < 2000 ? 1 : 61) {
    CAPTURE(i);
    std::vector<uint8_t> bad = good;
    bad[i] ^= static_cast<uint8_t>(1 << i % 8);
    CHECK(subject.Complaint(bad).find("damaged") != std::string::npos);
  }
  for (size_t n = 1; n < good.size(); n += 97)
    CHECK(subject.Complaint(std::span(good).first(n)).find("damaged") != std::string::npos);
}

TEST_CASE("heat: a file that is whole but wrong is refused, and says what is wrong") {
  const Subject subject;
  const auto complaint = [&](const std::function<void(Heat&)>& change) {
    Heat heat = subject.MakeHeat();
    change(heat);
    return subject.Complaint(SerializeHeat(heat));
  };
  const auto has = [](const std::string& text, const char* part) {
    CAPTURE(text);
    CAPTURE(part);
    CHECK(text.find(part) != std::string::npos);
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(complaint([](Heat&) {}).empty());
  has(complaint([](Heat& heat) { ++heat.identity; }), "another model, 'tiny'");
  has(complaint([](Heat& heat) { heat.activation = Activation::kRelu; }), "heat.activation");
  has(complaint([](Heat& heat) { heat.n_counted = heat.n_tokens + 1; }), "heat.tokens_counted");
  has(complaint([](Heat& heat) { heat.layers[1].fired[5] = 901; }), "blk.1.fired");
  has(complaint([](Heat& heat) { heat.layers[0].sum_abs[5] = -1; }), "blk.0.sum_abs");
  has(complaint([&](Heat& heat) { heat.layers[0].sum_abs[5] = nan; }), "nan");
  has(complaint([&](Heat& heat) { heat.layers[1].levels[0] = nan; }), "blk.1.levels");
  has(complaint([](Heat& heat) { heat.layers[1].histogram.pop_back(); }), "blk.1.histogram");
  has(complaint([](Heat& heat) {
        heat.layers.pop_back();
        heat.thresholds.clear();
        heat.sensitivity.clear();
        heat.predictors = {};
        heat.recent = {};
      }),
      "'blk.1.levels' is missing");
  has(complaint([](Heat& heat) { heat.targets = {0.5f, 0.25f}; }), "do not ascend");
  has(complaint([](Heat& heat) { heat.thresholds[1].sparsity = 0.1f; }), "do not ascend");
  has(complaint([](Heat& heat) { heat.thresholds[1].sparsity = 1.5f; }), "threshold.sparsity");
  has(complaint([&](Heat& heat) { heat.thresholds[0].levels[1] = nan; }), "threshold.levels");
  has(complaint([&](Heat& heat) { heat.thresholds[0].rise = nan; }), "threshold.rise");
  has(complaint([&](Heat& heat) { heat.thresholds[0].missed[0] = nan; }), "threshold.missed");
  has(complaint([&](Heat& heat) { heat.sensitivity[0] = nan; }), "threshold.sensitivity");
  has(complaint([](Heat& heat) { heat.chosen_threshold = 2; }), "heat.threshold");
  has(complaint([&](Heat& heat) { heat.recent.tokens = nan; }), "recent.tokens");
  has(complaint([&](Heat& heat) { heat.recent.fired[1][7] = nan; }), "blk.1.recent");
  has(complaint([](Heat& heat) { heat.recent.fired[1][7] = 61; }), "blk.1.recent");
  has(complaint([](Heat& heat) { heat.recent.fired.pop_back(); }), "'blk.1.recent' is missing");
  has(complaint([&](Heat& heat) { heat.predictors.layers[1].level = nan; }), "predictor.levels");
  has(complaint([&](Heat& heat) { heat.predictors.layers[1].bias[3] = nan; }), "blk.1.predictor_bias");
  has(complaint([](Heat& heat) { heat.predictors.layers[1].in[1] = 0x7e; }), "blk.1.predictor_in");     // NaN
  has(complaint([](Heat& heat) { heat.predictors.layers[0].out[35] = 0x7c; }), "blk.0.predictor_out");  // infinity
  has(complaint([](Heat& heat) { heat.predictors.layers[0].in.resize(heat.predictors.layers[0].in.size() / 2); }),
      "blk.0.predictor_in");
  has(complaint([](Heat& heat) { heat.predictors.layers[1] = {}; }), "the predictor of layer 1 is missing");
  has(complaint([&](Heat& heat) { heat.predictors.firing_levels[0] = nan; }), "predictor.firing_levels");
  has(complaint([&](Heat& heat) { heat.predictors.missed[1] = nan; }), "predictor.missed");
  has(complaint([](Heat& heat) { heat.predictors.recall[1] = 1.5f; }), "predictor.recall");
  has(complaint([&](Heat& heat) { heat.predictors.rise = nan; }), "predictor.rise");
}

TEST_CASE("heat: bins cover all magnitudes in order") {
  CHECK(HeatBin(0) == 0);
  CHECK(HeatBin(std::numeric_limits<float>::quiet_NaN()) == 0);
  CHECK(HeatBin(INFINITY) == kHeatBins - 1);
  CHECK(HeatBin(1e30f) == kHeatBins - 1);
  CHECK(HeatBin(-3) == HeatBin(3));
  for (int bin = 1; bin < kHeatBins; ++bin) {
    const float begin = HeatBinBegin(bin);
    CHECK(HeatBin(begin) == bin);
    CHECK(HeatBin(std::nextafter(begin, 0.f)) == bin - 1);
  }
}

TEST_CASE("heat: levels are quantiles") {
  const Subject subject;
  const Heat heat = subject.MakeHeat();  // 300 within [1, 17/16), 100 within [2, 2 + 1/8)
  CHECK(heat.Level(0, 0) == 1.0f);
  CHECK(heat.Level(0, 0.375) == doctest::Approx(1 + 0.5 / 16));
  CHECK(heat.Level(0, 0.875) == doctest::Approx(2 + 0.5 / 8));
  CHECK(heat.Level(0, 1) >= 2);
  const double low = std::pow(1 + 0.5 / 16, 2), high = std::pow(2 + 0.5 / 8, 2), all = 300 * low + 100 * high;
  CHECK(heat.SquaresBelow(0, 0) == 0);
  CHECK(heat.SquaresBelow(0, 0.5) == doctest::Approx(200 * low / all));
  CHECK(heat.SquaresBelow(0, 0.875) == doctest::Approx((300 * low + 50 * high) / all));
  CHECK(heat.SquaresBelow(0, 1) == doctest::Approx(1));
  Heat empty = heat;
  empty.layers[0].histogram.assign(kHeatBins, 0);
  CHECK(empty.Level(0, 0) == 0);
  CHECK(empty.SquaresBelow(0, 1) == 0);
}

TEST_CASE("heat: stands beside its model") {
  CHECK(HeatPath("models/SmolLM2.Q4_1.gguf") == "models/SmolLM2.Q4_1.heat");
  CHECK(HeatPath("model") == "model.heat");
}

}  // namespace thermocline
