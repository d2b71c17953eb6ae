#include "runtime/synth.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#include "models/error.h"
#include "runtime/engine.h"
#include "runtime/synth_sparsity.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

constexpr int kTokens = 512, kVocabulary = 512;
constexpr int kWatched = 2;  // the layer whose inputs are kept

struct Watched {
  ModelConfig config;
  std::vector<std::vector<int>> fires;  // (layers, n_ff) of kTokens
  std::vector<float> normed;            // (kTokens, n_embd) that kWatched's gates read
  std::vector<uint8_t> active;          // (kTokens, n_ff) of kWatched
  std::vector<float> gate;              // (n_ff, n_embd) of kWatched

  double Silent(int layer) const {
    const auto sum = std::accumulate(fires[layer].begin(), fires[layer].end(), 0.0);
    return 1 - sum / kTokens / config.n_ff;
  }
};

// Writes the model and runs random tokens through it.
Watched Watch(const SynthOptions& options) {
  GgufWriter vocabulary;
  AddTinyVocabulary(vocabulary, kVocabulary);
  const auto path = std::filesystem::temp_directory_path() / fmt::format("thermocline-synth-{}.gguf", getpid());
  {
    OutputFile out(path);
    WriteSynth(options, vocabulary.Open(), out);
    out.Commit();
  }
  const GgufFile file = GgufFile::Open(path);
  std::filesystem::remove(path);
  CHECK(IsSynthetic(file));
  const Model model = Model::FromGguf(file);
  Watched seen;
  seen.config = model.config;
  const int n_embd = model.config.n_embd, n_ff = model.config.n_ff;
  seen.fires.assign(model.config.n_layer, std::vector<int>(n_ff));
  seen.normed.resize(size_t{kTokens} * n_embd);
  seen.active.resize(size_t{kTokens} * n_ff);
  seen.gate.resize(size_t(n_ff) * n_embd);
  const Tensor& gate = *file.FindTensor(fmt::format("blk.{}.ffn_gate.weight", kWatched));
  Dequantize(gate.type, gate.data, gate.ne[0] * gate.ne[1], seen.gate.data());
  Engine engine(file, model, {.n_ctx = kTokens, .n_threads = 2});
  std::mutex mutex;
  engine.SetInputTap([&](const Op& op, int64_t row, std::span<const float> x) {
    if (op.kind != OpKind::kLinear) return;
    const std::lock_guard lock(mutex);
    if (op.in == Slot::kGate) {
      for (int i = 0; i < n_ff; ++i) {
        seen.fires[op.layer][i] += x[i] != 0;
        if (op.layer == kWatched) seen.active[row * n_ff + i] = x[i] != 0;
      }
    } else if (op.layer == kWatched && op.projections[0].out == Slot::kGate) {
      std::ranges::copy(x, seen.normed.begin() + row * n_embd);
    }
  });
  Batch batch;
  const int sequence = engine.NewSequence();
  std::mt19937 random(5);
  for (int i = 0; i < kTokens; ++i)
    batch.push_back({static_cast<TokenId>(random() % kVocabulary), sequence, i, RowKind::kPrompt, false});
  engine.Step(batch);
  return seen;
}

SynthOptions Planted(double sparsity, PlantedHeat heat = PlantedHeat::kZipf, DType type = DType::kQ4_0) {
  return {.shape = SynthShapes()[0], .type = type, .activation = Activation::kRelu, .sparsity = sparsity, .heat = heat};
}

// The share of what is active that is among the `n` neurons with the highest score for each token.
double Recall(const Watched& seen, int n, const std::function<void(int token, std::span<double> scores)>& score) {
  const int n_ff = seen.config.n_ff;
  int64_t hits = 0, all = 0;
  std::vector<double> scores(n_ff);
  std::vector<int> order(n_ff);
  for (int token = 0; token < kTokens; ++token) {
    score(token, scores);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + n, order.end(),
                     [&](int a, int b) { return scores[a] > scores[b]; });
    const uint8_t* active = seen.active.data() + size_t(token) * n_ff;
    for (int i = 0; i < n; ++i) hits += active[order[i]];
    for (int i = 0; i < n_ff; ++i) all += active[i];
  }
  return static_cast<double>(hits) / static_cast<double>(all);
}

// The best approximation of the varying columns of the gate by a matrix of rank r, by subspace iteration; the
// constants' columns stay.
std::vector<float> LowRank(const Watched& seen, int r) {
  const int n = seen.config.n_ff, k = seen.config.n_embd, varying = k - kConstants;
  std::vector<double> basis(size_t(r) * varying), product(size_t(n) * r);
  std::mt19937 random(1);
  for (double& x : basis) x = std::normal_distribution<double>()(random);
  const auto dot = [](const auto* a, const auto* b, int length) {
    double sum = 0;
    for (int i = 0; i < length; ++i) sum += double{a[i]} * b[i];
    return sum;
  };
  const auto project = [&] {
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < r; ++j)
        product[i * r + j] = dot(&seen.gate[size_t(i) * k], &basis[size_t(j) * varying], varying);
  };
  for (int round = 0; round < 4; ++round) {
    for (int j = 0; j < r; ++j) {  // Gram-Schmidt
      double* row = &basis[size_t(j) * varying];
      for (int other = 0; other < j; ++other) {
        const double along = dot(row, &basis[size_t(other) * varying], varying);
        for (int i = 0; i < varying; ++i) row[i] -= along * basis[size_t(other) * varying + i];
      }
      const double length = std::sqrt(dot(row, row, varying));
      for (int i = 0; i < varying; ++i) row[i] /= length;
    }
    project();
    if (round == 3) break;
    std::ranges::fill(basis, 0.0);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < r; ++j)
        for (int c = 0; c < varying; ++c)
          basis[size_t(j) * varying + c] += product[i * r + j] * seen.gate[size_t(i) * k + c];
  }
  std::vector<float> fit = seen.gate;
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < varying; ++c) {
      double sum = 0;
      for (int j = 0; j < r; ++j) sum += product[i * r + j] * basis[size_t(j) * varying + c];
      fit[size_t(i) * k + c] = static_cast<float>(sum);
    }
  return fit;
}

}  // namespace

TEST_CASE("synth: as many neurons are silent as was planted, in every layer") {
  for (const SynthOptions& options :
       {Planted(0.9), Planted(0.9, PlantedHeat::kTopics), Planted(0.9, PlantedHeat::kZipf, DType::kQ4_K), Planted(0.97),
        Planted(0.5, PlantedHeat::kFlat), Planted(0.5, PlantedHeat::kZipf, DType::kQ8_0), Planted(0),
        Planted(0.9, PlantedHeat::kFlat, DType::kF16)}) {
    const Watched seen = Watch(options);
    for (int layer = 0; layer < seen.config.n_layer; ++layer) {
      MESSAGE(SynthName(options), ", layer ", layer, ": ", seen.Silent(layer));
      CHECK(std::abs(seen.Silent(layer) - *options.sparsity) <= 0.02);
    }
  }
}

TEST_CASE("synth: neurons fire as often as was planted") {
  for (const PlantedHeat heat : {PlantedHeat::kZipf, PlantedHeat::kFlat, PlantedHeat::kSorted}) {
    const Watched seen = Watch(Planted(0.9, heat));
    const std::vector<double> planned = FiringFrequencies(seen.config.n_ff, 0.9, heat);
    CHECK(std::ranges::is_sorted(planned, std::greater()));
    for (int layer = 0; layer < seen.config.n_layer; ++layer) {
      std::vector<int> fires = seen.fires[layer];
      if (heat != PlantedHeat::kSorted) std::ranges::sort(fires, std::greater());
      // In order of heat, the sums of frequencies: noise orders the measured ones, too, which the flat ones show most.
      double measured_sum = 0, planned_sum = 0;
      for (size_t i = 0; i < fires.size(); ++i) {
        measured_sum += static_cast<double>(fires[i]) / kTokens / (0.1 * seen.config.n_ff);
        planned_sum += planned[i] / (0.1 * seen.config.n_ff);
        CHECK(std::abs(measured_sum - planned_sum) < 0.15);
      }
    }
  }
}

TEST_CASE("synth: who fires depends on the token, in a way that a predictor can learn for the most part") {
  const Watched seen = Watch(Planted(0.9));
  const int n_embd = seen.config.n_embd, n_ff = seen.config.n_ff, computed = n_ff / 5;
  const double always = Recall(seen, computed, [&](int, std::span<double> scores) {
    for (int i = 0; i < n_ff; ++i) scores[i] = seen.fires[kWatched][i];
  });
  const auto recall_of = [&](const std::vector<float>& gate) {
    return Recall(seen, computed, [&](int token, std::span<double> scores) {
      for (int i = 0; i < n_ff; ++i)
        scores[i] = std::inner_product(&gate[size_t(i) * n_embd], &gate[size_t(i + 1) * n_embd - 1] + 1,
                                       &seen.normed[size_t(token) * n_embd], 0.0);
    });
  };
  const double exact = recall_of(seen.gate), learned = recall_of(LowRank(seen, 64));
  MESSAGE("recall of a fifth of the neurons: the hottest ", always, ", rank 64 ", learned, ", the gate itself ", exact);
  CHECK(exact > 0.99);
  CHECK(learned < 0.99);
  CHECK(learned > 0.9);
  CHECK(always < learned - 0.1);
}

TEST_CASE("synth: with topics others are hot for words in small letters than for the rest") {
  GgufWriter vocabulary;
  AddTinyVocabulary(vocabulary, kVocabulary);
  const GgufFile file = vocabulary.Open();
  const auto& texts = file.FindArray("tokenizer.ggml.tokens", GgufArray::Kind::kString)->strings;
  // The mean over neurons of the squared difference between how often both kinds of tokens make them fire.
  const auto difference = [&](PlantedHeat heat) {
    const Watched seen = Watch(Planted(0.9, heat));
    std::mt19937 random(5);  // as in Watch
    std::vector<double> fires[2];
    double n_tokens[2] = {}, sum = 0;
    for (auto& counts : fires) counts.resize(static_cast<size_t>(seen.config.n_ff));
    for (int token = 0; token < kTokens; ++token) {
      const std::string_view text = texts[random() % kVocabulary];
      const bool word = std::ranges::all_of(text, [](char c) { return c >= 'a' && c <= 'z'; });
      ++n_tokens[word];
      for (int i = 0; i < seen.config.n_ff; ++i) fires[word][i] += seen.active[size_t(token) * seen.config.n_ff + i];
    }
    REQUIRE(n_tokens[true] > 10);
    for (int i = 0; i < seen.config.n_ff; ++i) {
      const double d = fires[0][i] / n_tokens[0] - fires[1][i] / n_tokens[1];
      sum += d * d / seen.config.n_ff;
    }
    return sum;
  };
  const double topics = difference(PlantedHeat::kTopics), zipf = difference(PlantedHeat::kZipf);
  MESSAGE("difference between kinds of tokens: topics ", topics, ", zipf ", zipf);
  CHECK(topics > 2 * zipf);
}

TEST_CASE("synth: frequencies of any sparsity have the mean that was asked for") {
  for (const PlantedHeat heat : {PlantedHeat::kZipf, PlantedHeat::kFlat})
    for (const double sparsity : {0.0, 0.01, 0.5, 0.9, kMaxSparsity}) {
      const auto frequencies = FiringFrequencies(5632, sparsity, heat);
      const double mean = std::accumulate(frequencies.begin(), frequencies.end(), 0.0) / 5632;
      CHECK(std::abs(1 - mean - sparsity) < 2e-4);
      for (const double frequency : {frequencies.front(), frequencies.back()}) {
        CHECK(frequency > 0);
        CHECK(frequency < 1);
      }
    }
  const auto by_the_hottest = [](double sparsity, double part) {
    const auto frequencies = FiringFrequencies(10000, sparsity, PlantedHeat::kZipf);
    const auto n = static_cast<std::ptrdiff_t>(part * 10000);
    return std::accumulate(frequencies.begin(), frequencies.begin() + n, 0.0) / (10000 * (1 - sparsity));
  };
  CHECK(by_the_hottest(0.97, 0.26) == doctest::Approx(0.787).epsilon(0.01));
  CHECK(by_the_hottest(0.9, 0.43) == doctest::Approx(0.826).epsilon(0.01));
  CHECK(NormalQuantile(0.5) == doctest::Approx(0).scale(1).epsilon(1e-9));
  CHECK(NormalQuantile(0.1) == doctest::Approx(1.2815515655446004));
  CHECK(NormalQuantile(0.9999) == doctest::Approx(-3.719016485455709));
  CHECK(RectifiedSquare(0) == doctest::Approx(0.5));
}

TEST_CASE("synth: a file without a vocabulary is refused") {
  const auto path = std::filesystem::temp_directory_path() / fmt::format("thermocline-synth-{}.gguf", getpid());
  OutputFile out(path);
  CHECK_THROWS_AS(WriteSynth(Planted(0.9), TinyModel({.n_vocab = 100}).Open(), out), Error);
}

}  // namespace thermocline
