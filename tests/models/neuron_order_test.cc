#include "models/neuron_order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "models/weight_rows.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

std::shared_ptr<const NeuronOrder> RandomOrder(int n_ff, int unit, uint32_t seed) {
  std::vector<int32_t> units(static_cast<size_t>(n_ff / unit)), neurons;
  std::iota(units.begin(), units.end(), 0);
  std::mt19937 random(seed);
  for (size_t i = units.size() - 1; i > 0; --i) std::swap(units[i], units[random() % (i + 1)]);
  for (const int32_t first : units)
    for (int i = 0; i < unit; ++i) neurons.push_back(first * unit + i);
  return std::make_shared<const NeuronOrder>(std::move(neurons), unit);
}

// All of a weight as floats, by way of `type`.
std::vector<float> Values(const Weight& weight, DType type) {
  std::vector<uint8_t> scratch;
  std::vector<float> values(static_cast<size_t>(weight.n * weight.k));
  for (int64_t i = 0; i < weight.n; ++i) {
    const FileRows rows = RowsAs(type, weight, i, 1, weight.first_k, weight.k, scratch);
    Dequantize(type, rows.data, weight.k, values.data() + i * weight.k);
  }
  return values;
}

constexpr int kFf = 512;

}  // namespace

TEST_CASE("neuron order: gate, up and biases follow it to the bit, down where blocks stay whole, else within 8 bits") {
  for (const DType type : {DType::kQ4_0, DType::kQ8_0, DType::kQ5_1, DType::kQ4_K, DType::kF16})
    for (const int unit : {1, 32, 256}) {
      CAPTURE(Info(type).name);
      CAPTURE(unit);
      const GgufFile file = TinyModel({.type = type, .n_embd = 256, .n_ff = kFf, .biases = true}).Open();
      const Model model = Model::FromGguf(file);
      const NeuronOrders orders = {RandomOrder(kFf, unit, 1), nullptr};
      const Model reordered = Reorder(model, orders);
      CHECK(HashOf(orders) != 0);
      CHECK(HashOf({nullptr, nullptr}) == 0);
      const NeuronOrder& order = *orders[0];
      int n_ordered = 0;
      for (size_t id = 0; id < model.weights.size(); ++id) {
        const Weight &weight = model.weights[id], &other = reordered.weights[id];
        if (other.rows) {
          CHECK(other.type() == weight.type());
          const int64_t k = weight.k;
          const std::vector<float> expected = weight.matrix ? Values(weight, weight.type()) : VectorOf(weight);
          const std::vector<float> values = weight.matrix ? Values(other, other.type()) : VectorOf(other);
          bool same = true;
          for (int64_t i = 0; i < kFf; ++i)
            same &= std::equal(&values[i * k], &values[i * k] + k, &expected[order[i] * k]);
          CHECK(same);
          ++n_ordered;
        }
        if (!other.columns) continue;
        const bool lossless = unit % LosslessUnit(model, 0) == 0;
        CHECK(other.type() == (lossless ? type : DType::kQ8_0));
        const std::vector<float> expected = Values(weight, type), values = Values(other, other.type());
        double worst = 0, largest = 0;
        for (int64_t e = 0; e < weight.n; ++e)
          for (int64_t i = 0; i < kFf; ++i) {
            const float value = expected[e * kFf + order[i]];
            largest = std::max(largest, std::abs(double{value}));
            worst = std::max(worst, std::abs(double{value} - values[e * kFf + i]));
          }
        CHECK(worst <= (lossless ? 0 : largest / 127));
        ++n_ordered;
      }
      CHECK(n_ordered == 5);  // gate, up, down, two biases
    }
}

TEST_CASE("neuron order: parts of a weight hold what the whole does") {
  const GgufFile file = TinyModel({.type = DType::kQ4_0, .n_embd = 64, .n_ff = kFf}).Open();
  const Model model = Reorder(Model::FromGguf(file), {RandomOrder(kFf, 1, 2), RandomOrder(kFf, 32, 3)});
  for (const Weight& weight : model.weights) {
    if (!weight.rows && !weight.columns) continue;
    const std::vector<float> whole = Values(weight, weight.type());
    Weight part = weight;
    if (weight.rows) {
      part.first_row = 192;
      part.n = 128;
    } else {
      part.first_k = 192;
      part.k = 128;
    }
    const std::vector<float> values = Values(part, weight.type());
    bool same = true;
    for (int64_t i = 0; i < part.n; ++i)
      same &= std::equal(&values[i * part.k], &values[i * part.k] + part.k,
                         &whole[(part.first_row + i) * weight.k + part.first_k]);
    CHECK(same);
  }
}

}  // namespace thermocline
