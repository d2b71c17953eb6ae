#include "runtime/quantizer.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "models/error.h"
#include "models/quantize.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

DType TypeOf(const GgufFile& file, const QuantizePlan& plan, const std::string& name) {
  const Tensor* tensor = file.FindTensor(name);
  REQUIRE(tensor != nullptr);
  return plan.types[static_cast<size_t>(tensor - file.tensors().data())];
}

bool Notes(const QuantizePlan& plan, const std::string& part) {
  for (const std::string& note : plan.notes)
    if (note.find(part) != std::string::npos) return true;
  return false;
}

QuantizePlan Plan(const GgufFile& file, DType type, bool pure = false) {
  return PlanTypes(file, Model::FromGguf(file), type, pure);
}

}  // namespace

TEST_CASE("quantizer: which type each tensor gets") {
  const GgufFile file = TinyModel({.type = DType::kF16, .n_embd = 256, .n_ff = 96, .biases = true}).Open();
  const QuantizePlan plan = Plan(file, DType::kQ4_K);
  CHECK(TypeOf(file, plan, "token_embd.weight") == DType::kQ5_K);
  CHECK(Notes(plan, "token_embd.weight becomes Q5_K, one step wider"));
  CHECK(TypeOf(file, plan, "blk.0.attn_q.weight") == DType::kQ4_K);
  CHECK(TypeOf(file, plan, "blk.0.ffn_down.weight") == DType::kQ5_0);
  CHECK(Notes(plan, "tensors with rows of 96 weights, which blocks of Q4_K do not divide, become Q5_0"));
  CHECK(TypeOf(file, plan, "blk.0.attn_norm.weight") == DType::kF32);
  CHECK(TypeOf(file, plan, "blk.0.attn_q.bias") == DType::kF32);
  CHECK(TypeOf(file, Plan(file, DType::kQ4_K, true), "token_embd.weight") == DType::kQ4_K);
  CHECK(TypeOf(file, Plan(file, DType::kQ6_K), "token_embd.weight") == DType::kQ8_0);
  CHECK(TypeOf(file, Plan(file, DType::kQ8_0), "token_embd.weight") == DType::kQ8_0);
  CHECK(FittingType(DType::kQ4_K, 288) == DType::kQ5_0);
  CHECK(FittingType(DType::kQ5_K, 288) == DType::kQ5_1);
  CHECK(FittingType(DType::kQ6_K, 288) == DType::kQ8_0);
  CHECK(FittingType(DType::kQ6_K, 48) == DType::kF16);
  CHECK(FittingType(DType::kQ4_0, 16) == DType::kF16);
}

TEST_CASE("quantizer: learned positions stay as they are") {
  const GgufFile file = TinyModel({.arch = "opt", .type = DType::kF16}).Open();
  const QuantizePlan plan = Plan(file, DType::kQ4_0, true);
  CHECK(TypeOf(file, plan, "position_embd.weight") == DType::kF16);
  CHECK(TypeOf(file, plan, "token_embd.weight") == DType::kQ4_0);
  CHECK(TypeOf(file, plan, "blk.0.ffn_up.weight") == DType::kQ4_0);
}

TEST_CASE("quantizer: what has no more bits stays, and nothing to do is an error") {
  const GgufFile file = TinyModel({.type = DType::kQ5_1}).Open();
  CHECK(TypeOf(file, Plan(file, DType::kQ4_1), "blk.0.attn_q.weight") == DType::kQ4_1);
  CHECK(TypeOf(file, Plan(file, DType::kQ4_1), "token_embd.weight") == DType::kQ5_1);
  CHECK(Notes(Plan(file, DType::kQ4_1), "1 tensor stays Q5_1"));
  CHECK(Notes(Plan(file, DType::kQ4_1), "is Q5_1 already; quantizing the original model loses less"));
  CHECK_THROWS_WITH_AS(Plan(file, DType::kQ8_0), doctest::Contains("nothing to do: no matrix has more bits than Q8_0"),
                       Error);
  CHECK_THROWS_WITH_AS(Plan(file, DType::kQ5_1), doctest::Contains("nothing to do"), Error);
}

TEST_CASE("quantizer: a weight that cannot be stored is refused by name and place") {
  struct Bad {
    DType type;
    float value;
    const char* message;
  };
  for (const auto& [type, value, message] : {Bad{DType::kF32, NAN, "nan at row 5, column 7: no finite number"},
                                             Bad{DType::kF16, INFINITY, "inf at row 5, column 7: no finite number"},
                                             Bad{DType::kF32, -1e5f, "-100000 at row 5, column 7: no block type holds"},
                                             Bad{DType::kBF16, -INFINITY, "-inf at row 5, column 7"}}) {
    GgufWriter writer = TinyModel({.type = type});
    for (auto& tensor : writer.tensors) {
      if (tensor.name != "blk.1.ffn_up.weight") continue;
      const size_t at = 5 * 64 + 7;
      const uint16_t half = type == DType::kF16 ? 0x7c00 : 0xff80;
      if (type == DType::kF32)
        std::memcpy(tensor.data.data() + 4 * at, &value, 4);
      else
        std::memcpy(tensor.data.data() + 2 * at, &half, 2);
    }
    const GgufFile file = writer.Open();
    Team team(2);
    CHECK_THROWS_WITH_AS(EncodeTensor(file, *file.FindTensor("blk.1.ffn_up.weight"), DType::kQ4_0, nullptr, team),
                         doctest::Contains(message), Error);
    CHECK_THROWS_WITH_AS(EncodeTensor(file, *file.FindTensor("blk.1.ffn_up.weight"), DType::kQ4_0, nullptr, team),
                         doctest::Contains("tensor 'blk.1.ffn_up.weight'"), Error);
  }
}

TEST_CASE("quantizer: neurons in another order are written so, and rounded as their rows are") {
  const GgufFile file = TinyModel({.type = DType::kF16, .n_ff = 96, .biases = true}).Open();
  const Model model = Model::FromGguf(file);
  std::vector<int32_t> neurons(96);
  for (int i = 0; i < 96; ++i) neurons[i] = i * 37 % 96;
  const auto order = std::make_shared<const NeuronOrder>(neurons, 1);
  const Model reordered = Reorder(model, {order, nullptr});
  Team team(1);
  int n_ordered = 0;
  for (const Weight& weight : reordered.weights) {
    if (!weight.rows && !weight.columns) continue;
    const Tensor& tensor = *weight.tensor;
    const DType type = weight.matrix ? DType::kQ4_0 : tensor.type;
    const std::vector<uint8_t> bytes = EncodeTensor(file, tensor, type, nullptr, team, &weight);
    const int64_t n = weight.n, k = weight.k;
    std::vector<float> source(n * k), moved(n * k), encoded(n * k);
    Dequantize(tensor.type, tensor.data, n * k, source.data());
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j)
        moved[i * k + j] = source[(weight.rows ? neurons[i] : i) * k + (weight.columns ? neurons[j] : j)];
    std::vector<uint8_t> expected(bytes.size());
    Quantize(type, moved.data(), nullptr, n * k, expected.data());
    CHECK(bytes == expected);
    ++n_ordered;
  }
  CHECK(n_ordered == 5);  // gate, up, down and two biases
}

TEST_CASE("quantizer: type names") {
  CHECK(FindQuantizeType("q4_k") == DType::kQ4_K);
  CHECK(FindQuantizeType("Q8_0") == DType::kQ8_0);
  CHECK_FALSE(FindQuantizeType("F16").has_value());
  CHECK_FALSE(FindQuantizeType("").has_value());
}

}  // namespace thermocline
