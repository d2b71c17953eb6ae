#include "cpu/feedback.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/quantize.h"
#include "tests/cpu/kernel_test_util.h"

namespace thermocline::test {
namespace {

constexpr float kDamping = 0.001f;

// Second moments of inputs that go together: a few directions, one of them much larger, and a little of everything.
std::vector<float> CorrelatedGram(int k, Random& random) {
  constexpr int kDirections = 12, kInputs = 400;
  const std::vector<float> directions = random.Normals(size_t(kDirections) * k);
  std::vector<float> gram(size_t(k) * k);
  for (int input = 0; input < kInputs; ++input) {
    std::vector<float> x = random.Normals(k, 0.3f);
    for (int d = 0; d < kDirections; ++d) {
      const float along = random.Normal(d == 0 ? 10 : 1);
      for (int i = 0; i < k; ++i) x[i] += along * directions[size_t(d) * k + i];
    }
    for (int i = 0; i < k; ++i)
      for (int j = 0; j < k; ++j) gram[size_t(i) * k + j] += x[i] * x[j];
  }
  return gram;
}

// sum over rows of e H e^T.
double OutputError(const std::vector<float>& w, DType type, const std::vector<uint8_t>& bytes,
                   const std::vector<float>& gram, int k) {
  std::vector<float> rounded(w.size());
  Dequantize(type, bytes.data(), static_cast<int64_t>(w.size()), rounded.data());
  double error = 0;
  for (size_t row = 0; row < w.size(); row += k)
    for (int i = 0; i < k; ++i) {
      double sum = 0;
      for (int j = 0; j < k; ++j) sum += (double{w[row + j]} - rounded[row + j]) * gram[size_t(i) * k + j];
      error += (double{w[row + i]} - rounded[row + i]) * sum;
    }
  return error;
}

size_t Bytes(DType type, size_t n) { return n / Info(type).block * Info(type).block_bytes; }

}  // namespace

TEST_CASE("feedback: the factors multiply to the damped second moments") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  for (int k : {1, 2, 32, 63, 64, 65, 160, 288}) {
    CAPTURE(k);
    Random random(k);
    const std::vector<float> gram = CorrelatedGram(k, random);
    const Feedback feedback = FactorFeedback(gram, k, kDamping, ops);
    double trace = 0;
    for (int i = 0; i < k; ++i) trace += gram[size_t(i) * k + i];
    const auto product = [&](int a, int b) {  // row a of U + I by D by row b
      double sum = 0;
      for (int i = std::max(a, b); i < k; ++i) {
        const double left = a == i ? 1 : feedback.u[size_t(a) * k + i];
        const double right = b == i ? 1 : feedback.u[size_t(b) * k + i];
        sum += left * feedback.weights[i] * right;
      }
      return sum;
    };
    double worst = 0;
    for (int i = 0; i < k; ++i)
      for (int j = i; j < k; ++j) {
        const double expected = gram[size_t(i) * k + j] + (i == j ? kDamping * trace / k : 0);
        worst = std::max(worst, std::abs(product(i, j) * feedback.scale - expected) / (trace / k));
      }
    CHECK(worst < 1e-3);
    CHECK(std::accumulate(feedback.weights.begin(), feedback.weights.end(), 0.0) == doctest::Approx(k).epsilon(1e-3));
  }
}

TEST_CASE("feedback: outputs err far less than by rounding each weight for itself") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  constexpr int kColumns = 256, kRows = 29;
  Random random(1);
  const std::vector<float> gram = CorrelatedGram(kColumns, random);
  const Feedback feedback = FactorFeedback(gram, kColumns, kDamping, ops);
  const std::vector<float> w = random.Normals(size_t(kRows) * kColumns, 0.05f);
  for (DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K,
                     DType::kQ6_K, DType::kIQ4_NL}) {
    CAPTURE(std::string(Info(type).name));
    std::vector<uint8_t> plain(Bytes(type, w.size())), fed(plain.size());
    Quantize(type, w.data(), nullptr, static_cast<int64_t>(w.size()), plain.data());
    const double error = QuantizeWithFeedback(type, feedback, w, fed.data(), ops);
    // What it says is the damped second moments' error.
    CHECK(error > OutputError(w, type, fed, gram, kColumns));
    CHECK(error < 3 * OutputError(w, type, fed, gram, kColumns));
    CHECK(OutputError(w, type, fed, gram, kColumns) < 0.1 * OutputError(w, type, plain, gram, kColumns));
    // A row is the same bytes alone.
    std::vector<uint8_t> alone(Bytes(type, kColumns));
    for (int row : {0, 11, 12, 28}) {
      QuantizeWithFeedback(type, feedback, std::span(w).subspan(size_t(row) * kColumns, kColumns), alone.data(), ops);
      CHECK(std::equal(alone.begin(), alone.end(), fed.begin() + static_cast<std::ptrdiff_t>(row * alone.size())));
    }
  }
}

TEST_CASE("feedback: scales and codes that are gone through again err less than those chosen in order") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  constexpr int kColumns = 256, kRows = 14;
  Random random(3);
  const std::vector<float> gram = CorrelatedGram(kColumns, random);
  const Feedback feedback = FactorFeedback(gram, kColumns, kDamping, ops);
  const std::vector<float> w = random.Normals(size_t(kRows) * kColumns, 0.05f);
  for (DType type : {DType::kQ4_0, DType::kIQ4_NL, DType::kQ5_0, DType::kQ5_1, DType::kQ6_K}) {
    CAPTURE(std::string(Info(type).name));
    const int block = Info(type).block;
    std::vector<uint8_t> ours(Bytes(type, w.size())), in_order(ours.size());
    QuantizeWithFeedback(type, feedback, w, ours.data(), ops);
    for (int row = 0; row < kRows; ++row) {
      std::vector<float> target(w.begin() + row * kColumns, w.begin() + (row + 1) * kColumns);
      for (int first = 0; first < kColumns; first += block) {
        uint8_t* at = in_order.data() + Bytes(type, size_t(row) * kColumns + first);
        const BlockGrid grid = ChooseScales(type, target.data() + first, feedback.weights.data() + first, at);
        std::vector<uint8_t> codes(block);
        for (int i = first; i < first + block; ++i) {
          codes[i - first] = static_cast<uint8_t>(grid.Code(i - first, target[i]));
          const float error = w[row * kColumns + i] - grid.Value(i - first, codes[i - first]);
          for (int j = i + 1; j < kColumns; ++j) target[j] += error * feedback.u[size_t(i) * kColumns + j];
        }
        PutCodes(type, codes.data(), at);
      }
    }
    CHECK(OutputError(w, type, ours, gram, kColumns) < 0.97 * OutputError(w, type, in_order, gram, kColumns));
  }
}

TEST_CASE("feedback: weights follow what their inputs have become, a row as it does alone") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  constexpr int kRows = 29;
  for (const int k : {1, 31, 64, 65, 160}) {
    CAPTURE(k);
    Random random(k);
    const std::vector<float> gram = CorrelatedGram(k, random);
    // The change of inputs: some of what they are, and something of its own.
    std::vector<float> inputs(size_t(k) * k);
    for (float& value : inputs) value = random.Normal(0.02f * gram[0]);
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] += 0.1f * gram[i];
    const Drift drift{FactorFeedback(gram, k, 0.1f, ops), inputs};
    const std::vector<float> before = random.Normals(size_t(kRows) * k, 0.05f);
    std::vector<float> after = before;
    FollowDrift(drift, after, ops);
    // (w' - w) H = w E[(x - x') x'^T], H damped.
    double trace = 0;
    for (int i = 0; i < k; ++i) trace += gram[size_t(i) * k + i];
    double worst = 0, largest = 0;
    for (int row = 0; row < kRows; ++row)
      for (int j = 0; j < k; ++j) {
        double left = (double{after[row * k + j]} - before[row * k + j]) * 0.1 * trace / k, right = 0;
        for (int i = 0; i < k; ++i) {
          left += (double{after[row * k + i]} - before[row * k + i]) * gram[size_t(i) * k + j];
          right += double{before[row * k + i]} * inputs[size_t(i) * k + j];
        }
        worst = std::max(worst, std::abs(left - right));
        largest = std::max(largest, std::abs(right));
      }
    CHECK(worst < 1e-3 * largest);
    for (const int row : {0, 11, 28}) {
      std::vector<float> alone(before.begin() + row * k, before.begin() + (row + 1) * k);
      FollowDrift(drift, alone, ops);
      CHECK(std::equal(alone.begin(), alone.end(), after.begin() + row * k));
    }
  }
}

TEST_CASE("feedback: a weight stays where following would take it beyond what can be encoded") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  const std::vector<float> gram = {1, 0, 0, 1};
  for (const float much : {1e6f, 1e38f}) {
    const Drift drift{FactorFeedback(gram, 2, kDamping, ops), {much, 0, 0, 1}};
    std::vector<float> row = {1, 1};
    FollowDrift(drift, row, ops);
    CHECK(row[0] == 1);
    CHECK(row[1] == doctest::Approx(2).epsilon(2 * kDamping));
  }
}

TEST_CASE("feedback: where no input was seen, weights are rounded as well as for themselves") {
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  constexpr int kColumns = 64;
  Random random(2);
  std::vector<float> nothing(kColumns * kColumns), all_alike(nothing.size());
  for (int i = 0; i < kColumns; ++i) all_alike[i * kColumns + i] = 1;
  const Feedback feedback = FactorFeedback(nothing, kColumns, kDamping, ops);
  const std::vector<float> w = random.Normals(kColumns);
  for (DType type : {DType::kQ4_0, DType::kQ4_1, DType::kIQ4_NL}) {
    std::vector<uint8_t> plain(Bytes(type, w.size())), fed(plain.size());
    Quantize(type, w.data(), nullptr, kColumns, plain.data());
    QuantizeWithFeedback(type, feedback, w, fed.data(), ops);
    CHECK(OutputError(w, type, fed, all_alike, kColumns) <= 1.0001 * OutputError(w, type, plain, all_alike, kColumns));
  }
}

}  // namespace thermocline::test
