#include "cpu/predicted_gate.h"

#include <doctest/doctest.h>

#include <cmath>

#include "models/quantize.h"
#include "tests/cpu/file_weight.h"
#include "tests/cpu/guarded.h"
#include "tests/cpu/kernel_test_util.h"
#include "tests/cpu/random_weights.h"

namespace thermocline {
namespace {

constexpr int64_t kRows = 19;

// A gate of n_ff neurons in rows, a predictor of it, and rows that read both.
struct Case {
  int64_t n_embd, n_ff;
  Buffer gate_memory, x, spread;
  Bundles gates;
  NeuronPredictor predictor;
  std::vector<float> values;  // (kRows, n_embd)

  Case(DType type, int64_t n_embd, int64_t n_ff, int64_t rank, Isa isa)
      : n_embd(n_embd),
        n_ff(n_ff),
        x(kRows * ActivationRowBytes(n_embd), "a test"),
        spread(kRows * SpreadBytes(n_embd), "a test") {
    std::mt19937 rng(static_cast<uint32_t>(n_embd + n_ff + rank));
    const std::vector<uint8_t> rows = test::RandomWeights(type, n_ff, n_embd, rng);
    const BundleShape shape = BundleShape::Rows(BundleShape::UpType(type), n_embd, n_ff);
    gate_memory = Buffer(shape.bytes(), "a test");
    gates = Bundles(shape, gate_memory.data());
    const test::FileWeight weight(type, rows, n_ff, n_embd);
    for (int64_t slice = 0; slice < shape.n_slices(); ++slice) gates.PackUp(weight.weight, slice, isa);
    test::Random random(static_cast<uint64_t>(n_ff));
    const auto blocks = [&](int64_t n) {
      std::vector<uint8_t> out(static_cast<size_t>(n / 32 * 34));
      const std::vector<float> floats = random.Normals(n);
      Quantize(DType::kQ8_0, floats.data(), nullptr, n, out.data());
      return out;
    };
    predictor = {rank, blocks(rank * n_embd), blocks(n_ff * rank), random.Normals(n_ff), 3};
    values = random.Normals(kRows * n_embd);
    for (int64_t row = 0; row < kRows; ++row) {
      uint8_t* to = x.data() + row * ActivationRowBytes(n_embd);
      VectorOpsFor(Isa::kScalar).quantize(values.data() + row * n_embd, n_embd, kAllGroups, to);
      SpreadActivations(to, n_embd, spread.data() + row * SpreadBytes(n_embd));
    }
  }

  // out (in x) + bias in double.
  std::vector<double> Scores(int64_t row) const {
    std::vector<float> in(predictor.rank * n_embd), out(n_ff * predictor.rank);
    Dequantize(DType::kQ8_0, predictor.in.data(), std::ssize(in), in.data());
    Dequantize(DType::kQ8_0, predictor.out.data(), std::ssize(out), out.data());
    std::vector<double> reduced(predictor.rank), scores(n_ff);
    for (int64_t r = 0; r < predictor.rank; ++r)
      for (int64_t k = 0; k < n_embd; ++k) reduced[r] += double{in[r * n_embd + k]} * values[row * n_embd + k];
    for (int64_t i = 0; i < n_ff; ++i) {
      scores[i] = predictor.bias[i];
      for (int64_t r = 0; r < predictor.rank; ++r) scores[i] += out[i * predictor.rank + r] * reduced[r];
    }
    return scores;
  }
};

struct Result {
  std::vector<float> gate;  // (kRows, n_ff)
  std::vector<float> audited;
  NeuronCount count;
};

Result Run(const Case& c, Isa isa, int n_threads, std::vector<RowRun> runs, int64_t audited = -1,
           std::optional<float> level = {}) {
  Team team(n_threads);
  PredictedGate gate(isa, kRows, n_threads);
  gate.Add(c.gates, c.predictor, Activation::kRelu);
  gate.FinishAdding();
  if (level) gate.SetLevels({&*level, 1});
  test::GuardedBuffer<float> out(static_cast<size_t>(kRows * c.n_ff));
  std::fill(out.begin(), out.end(), -7.f);
  std::vector<NeuronCount> counts(static_cast<size_t>(n_threads));
  std::vector<NeuronCount*> pointers;
  for (NeuronCount& count : counts) pointers.push_back(&count);
  team.Run([&](Team::Member& member) {
    gate.Run(member, 0, {runs, c.x.data(), c.spread.data(), out.data(), c.n_ff, audited}, pointers, [] {});
  });
  Result result{out.ToVector(), {}, {}};
  if (audited >= 0) result.audited.assign(gate.audited_activation(), gate.audited_activation() + c.n_ff);
  for (const NeuronCount& count : counts) result.count.Add(count);
  return result;
}

constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_1, DType::kQ8_0, DType::kQ6_K};

}  // namespace

TEST_CASE("predicted gate: gates of predicted neurons are the product with the weights, others 0") {
  std::vector<Isa> isas = test::RunnableIsas(test::kGeneratedIsas);
  isas.push_back(Isa::kScalar);
  for (const DType type : kTypes)
    for (const int64_t n_ff : {32, 288, 512})
      for (const int64_t rank : {32, 96}) {
        CAPTURE(Info(type).name);
        CAPTURE(n_ff);
        CAPTURE(rank);
        const Case c(type, 512 + 256, n_ff, rank, Isa::kScalar);
        std::vector<float> weights(c.n_embd), first;
        for (const Isa isa : isas) {
          CAPTURE(Name(isa));
          const Result result = Run(c, isa, 1, {{0, kRows}});
          int64_t predicted = 0, unclear = 0;
          for (int64_t row = 0; row < kRows; ++row) {
            const std::vector<double> scores = c.Scores(row);
            for (int64_t i = 0; i < n_ff; ++i) {
              const float gate = result.gate[row * n_ff + i];
              predicted += gate != 0;
              if (std::fabs(scores[i] - c.predictor.level) <
                  0.05 * std::sqrt(static_cast<double>(rank * c.n_embd) / 1e3)) {
                ++unclear;
                continue;
              }
              if (scores[i] <= c.predictor.level) {
                CHECK(gate == 0);
                continue;
              }
              c.gates.DequantizeUp(i, weights.data());
              double dot = 0, size = 0;
              for (int64_t k = 0; k < c.n_embd; ++k) {
                dot += double{weights[k]} * c.values[row * c.n_embd + k];
                size += std::fabs(double{weights[k]} * c.values[row * c.n_embd + k]);
              }
              CHECK(std::fabs(gate - dot) <= 1e-3 * size);
            }
          }
          CHECK(result.count.predicted == predicted);
          CHECK(predicted > kRows * n_ff / 4);
          CHECK(predicted < kRows * n_ff * 3 / 4);
          CHECK(unclear < kRows * n_ff / 50 + 3);
          if (isa == Isa::kScalar) continue;
          if (first.empty()) first = result.gate;
          test::CheckSame<float>(result.gate, first);
        }
      }
}

TEST_CASE("predicted gate: neither threads nor neighbours change a bit, and other rows are left alone") {
  for (const Isa isa : test::RunnableIsas(test::kGeneratedIsas)) {
    CAPTURE(Name(isa));
    const Case c(DType::kQ4_0, 160, 544, 64, isa);
    const std::vector<float> all = Run(c, isa, 1, {{0, kRows}}).gate;
    test::CheckSame<float>(Run(c, isa, 2, {{0, kRows}}).gate, all);
    const std::vector<float> some = Run(c, isa, 2, {{1, 1}, {3, 9}, {18, 1}}).gate;
    for (int64_t row = 0; row < kRows; ++row) {
      const bool ran = row == 1 || (row >= 3 && row < 12) || row == 18;
      for (int64_t i = 0; i < c.n_ff; ++i) CHECK(some[row * c.n_ff + i] == (ran ? all[row * c.n_ff + i] : -7));
    }
  }
}

TEST_CASE("predicted gate: levels decide, and the audited row has all neurons whatever they say") {
  const Isa isa = test::RunnableIsas(test::kGeneratedIsas).empty() ? Isa::kScalar
                                                                   : test::RunnableIsas(test::kGeneratedIsas).front();
  const Case c(DType::kQ8_0, 96, 288, 32, isa);
  const Result none = Run(c, isa, 2, {{0, kRows}}, 5, 1e30f), all = Run(c, isa, 2, {{0, kRows}}, 5, -1e30f);
  CHECK(none.count.predicted == 0);
  CHECK(none.count.bytes_read == 0);
  CHECK(none.count.predictor_bytes > 0);
  CHECK(std::count(none.gate.begin(), none.gate.end(), 0.f) == kRows * c.n_ff);
  CHECK(all.count.predicted == kRows * c.n_ff);
  CHECK(all.count.bytes_read == all.count.bytes);
  const Result some = Run(c, isa, 1, {{0, kRows}}, 5);
  for (int64_t i = 0; i < kRows * c.n_ff; ++i)
    if (some.gate[i] != 0) CHECK(some.gate[i] == all.gate[i]);
  for (int64_t i = 0; i < c.n_ff; ++i) CHECK(some.audited[i] == std::max(0.f, all.gate[5 * c.n_ff + i]));
  CHECK(none.audited == some.audited);
}

}  // namespace thermocline
