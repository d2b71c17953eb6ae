#include "cpu/feedback.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "models/check.h"
#include "models/quantize.h"

namespace thermocline {
namespace {

// Columns factored before the rest is updated by all of them.
constexpr int64_t kPanel = 64;
// Rows rounded side by side, so that they share each load of U.
constexpr int64_t kRows = 12;
constexpr int kMaxBlock = 256;

// h = R R^T with R upper triangular, in place, from the last column to the first.
void FactorUpper(std::vector<float>& h, int64_t k, const VectorOps& ops) {
  std::vector<float> panel;  // columns [begin, end) above the diagonal block, negated, one after the other
  for (int64_t end = k; end > 0; end -= std::min(end, kPanel)) {
    const int64_t begin = std::max<int64_t>(0, end - kPanel);
    for (int64_t j = end - 1; j >= begin; --j) {
      float* column = h.data() + j;
      const float diagonal = std::sqrt(std::max(column[j * k], 1e-30f));
      column[j * k] = diagonal;
      for (int64_t i = 0; i < j; ++i) column[i * k] /= diagonal;
      for (int64_t i = 0; i < j; ++i) {
        float* row = h.data() + i * k;
        for (int64_t other = std::max(begin, i); other < j; ++other) row[other] -= row[j] * h[other * k + j];
      }
    }
    panel.resize(static_cast<size_t>(begin * (end - begin)));
    for (int64_t j = begin; j < end; ++j)
      for (int64_t i = 0; i < begin; ++i) panel[(j - begin) * begin + i] = h[i * k + j];
    std::vector<float> negated = panel;
    for (float& value : negated) value = -value;
    for (int64_t i = 0; i < begin; i += kPanel) {
      ops.add_outer_products({negated.data() + i, begin, panel.data() + i, begin, h.data() + i * k + i, k,
                              std::min(kPanel, begin - i), begin - i, end - begin});
    }
  }
}

// One block of some rows: chooses scales for the targets, then codes, each error going on to the targets behind it.
class BlockRounder {
 public:
  BlockRounder(DType type, const Feedback& feedback) : type_(type), n_(Info(type).block), feedback_(feedback) {}

  // w, target: (n_) of one row; errors: (n_), stride apart. Returns the weighted squared error.
  double Round(int64_t first, const float* w, float* target, float* errors, int64_t stride, uint8_t* block) {
    double sum = 0;
    const BlockGrid grid = ChooseScales(type_, target, feedback_.weights.data() + first, block);
    for (int i = 0; i < n_; ++i) {
      codes_[i] = static_cast<uint8_t>(grid.Code(i, target[i]));
      const float value = grid.Value(i, codes_[i]), error = w[i] - value;
      errors[i * stride] = error;
      const double miss = double{target[i]} - value;
      sum += feedback_.weights[first + i] * miss * miss;
      const float* u = feedback_.u.data() + (first + i) * feedback_.k + first;
      for (int j = i + 1; j < n_; ++j) target[j] += error * u[j];
    }
    PutCodes(type_, codes_.data(), block);
    return sum;
  }

 private:
  const DType type_;
  const int n_;
  const Feedback& feedback_;
  std::array<uint8_t, kMaxBlock> codes_;
};

}  // namespace

Feedback FactorFeedback(std::vector<float> gram, int64_t k, float damping, const VectorOps& ops) {
  CHECK(static_cast<int64_t>(gram.size()) == k * k);
  double trace = 0;
  for (int64_t i = 0; i < k; ++i) trace += gram[i * k + i];
  const float ridge = trace > 0 ? static_cast<float>(trace / static_cast<double>(k)) * damping : 1;
  for (int64_t i = 0; i < k; ++i) gram[i * k + i] += ridge;
  FactorUpper(gram, k, ops);
  Feedback feedback{.k = k, .u = std::move(gram), .weights = std::vector<float>(static_cast<size_t>(k))};
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float diagonal = feedback.u[i * k + i];
    feedback.weights[i] = diagonal * diagonal;
    sum += feedback.weights[i];
    for (int64_t j = 0; j < i; ++j) feedback.u[j * k + i] /= diagonal;
  }
  feedback.scale = sum / static_cast<double>(k);
  // Around 1, where the encoders' sums of squares stay far from a float's ends.
  for (float& weight : feedback.weights) weight = static_cast<float>(weight * static_cast<double>(k) / sum);
  return feedback;
}

double QuantizeWithFeedback(DType type, const Feedback& feedback, std::span<const float> rows, uint8_t* out,
                            const VectorOps& ops) {
  const int64_t k = feedback.k, block = Info(type).block;
  const int64_t n = static_cast<int64_t>(rows.size()) / k, row_bytes = k / block * Info(type).block_bytes;
  CHECK(HasEncoder(type) && k % block == 0);
  std::vector<float> errors(static_cast<size_t>(k * kRows));       // (k, kRows)
  std::vector<float> targets(static_cast<size_t>(kRows * block));  // (kRows, block)
  BlockRounder rounder(type, feedback);
  double error = 0;
  for (int64_t begin = 0; begin < n; begin += kRows) {
    const int64_t count = std::min(kRows, n - begin);
    for (int64_t first = 0; first < k; first += block) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(targets.data() + r * block, rows.data() + (begin + r) * k + first, static_cast<size_t>(block) * 4);
      ops.add_outer_products(
          {errors.data(), kRows, feedback.u.data() + first, k, targets.data(), block, count, block, first});
      for (int64_t r = 0; r < count; ++r) {
        error += rounder.Round(first, rows.data() + (begin + r) * k + first, targets.data() + r * block,
                               errors.data() + first * kRows + r, kRows,
                               out + (begin + r) * row_bytes + first / block * Info(type).block_bytes);
      }
    }
  }
  return error * feedback.scale;
}

}  // namespace thermocline
