// PowerInfer's files: another magic, a transposed down, predictors.
#include <doctest/doctest.h>

#include "models/error.h"
#include "models/quantize.h"
#include "models/weight_rows.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

const Weight& Down(const Model& model, int layer) {
  for (const Op& op : model.program.ops)
    if (op.layer == layer && op.kind == OpKind::kLinear && op.in == Slot::kGate)
      return model.weights[op.projections[0].weight];
  throw Error("no down in layer {}", layer);
}

// weight[n][k] = tensor[k][n], where the order has neuron k.
std::vector<float> TransposedByHand(const Weight& weight) {
  const Tensor& tensor = *weight.tensor;
  std::vector<float> values(static_cast<size_t>(tensor.ne[0] * tensor.ne[1])), out(values.size());
  Dequantize(tensor.type, tensor.data, std::ssize(values), values.data());
  for (int64_t n = 0; n < weight.n; ++n)
    for (int64_t k = 0; k < weight.k; ++k)
      out[n * weight.k + k] = values[(weight.columns ? (*weight.columns)[k] : k) * weight.n + n];
  return out;
}

std::string Refusal(const GgufWriter& writer) {
  const GgufFile file = writer.Open();
  try {
    Model::FromGguf(file);
  } catch (const Error& error) {
    return error.what();
  }
  return "none";
}

GgufWriter Without(GgufWriter writer, const std::string& name) {
  std::erase_if(writer.tensors, [&](const GgufWriter::TensorEntry& tensor) { return tensor.name == name; });
  return writer;
}

}  // namespace

TEST_CASE("powerinfer: any part of a transposed down is the transposed part, in any order of neurons") {
  std::mt19937 random(3);
  for (const DType type : {DType::kF16, DType::kQ4_0, DType::kQ8_0, DType::kQ4_K}) {
    CAPTURE(Info(type).name);
    const int n_embd = 256, n_ff = 544;
    const GgufFile file = TinyModel({.type = type, .n_embd = n_embd, .n_ff = n_ff, .predictor_rank = 32}).Open();
    Model model = Model::FromGguf(file);
    std::vector<int32_t> neurons(n_ff);
    for (int i = 0; i < n_ff; ++i) neurons[i] = (i * 5 + 3) % n_ff;
    const auto order = std::make_shared<const NeuronOrder>(neurons, 1);
    for (const Model& ordered : {model, Reorder(model, {order, order})}) {
      const Weight& down = Down(ordered, 1);
      CHECK(down.transposed);
      CHECK(down.n == n_embd);
      CHECK(down.k == n_ff);
      CHECK(down.type() == (type == DType::kF16 ? type : DType::kQ8_0));
      const std::vector<float> expected = TransposedByHand(down);
      std::vector<uint8_t> scratch;
      for (int round = 0; round < 20; ++round) {
        const int64_t row = random() % n_embd, n_rows = 1 + random() % (n_embd - row);
        const int64_t column = random() % (n_ff / 32) * 32, n = 32 + random() % ((n_ff - column) / 32) * 32;
        for (const DType held : {down.type(), DType::kF32}) {
          const FileRows rows = RowsAs(held, down, row, n_rows, column, n, scratch);
          bool same = rows.row_bytes == FileRowBytes(held, n);
          std::vector<uint8_t> by_hand(static_cast<size_t>(rows.row_bytes));
          for (int64_t i = 0; i < n_rows; ++i) {
            Quantize(held, expected.data() + (row + i) * n_ff + column, nullptr, n, by_hand.data());
            same &= std::memcmp(by_hand.data(), rows.data + i * rows.row_bytes, by_hand.size()) == 0;
          }
          CHECK(same);
        }
      }
    }
    CHECK(LosslessUnit(model, 0) == 1);
  }
}

TEST_CASE("powerinfer: llama is gated by ReLU, positions of opt are counted without the unused rows") {
  const TinyOptions llama{.predictor_rank = 32};
  const GgufFile file = TinyModel(llama).Open();
  CHECK(file.powerinfer());
  const Model model = Model::FromGguf(file);
  CHECK(model.config.arch.activation == Activation::kRelu);
  CHECK(model.predictors.size() == 2);
  CHECK(model.predictors[1].in->name == "blk.1.fc1.weight");
  CHECK(model.predictors[1].out->ne[1] == llama.n_ff);
  const GgufFile opt = TinyModel({.arch = "opt", .n_head_kv = 4, .biases = true, .predictor_rank = 32}).Open();
  CHECK(Model::FromGguf(opt).config.n_ctx_train == 256);
  const GgufFile plain = TinyModel().Open();
  CHECK_FALSE(plain.powerinfer());
  CHECK(Model::FromGguf(plain).predictors.empty());
}

TEST_CASE("powerinfer: what does not fit is refused by name") {
  const TinyOptions options{.predictor_rank = 32};
  const GgufWriter good = TinyModel(options);
  CHECK(Refusal(good) == "none");
  CHECK(Refusal(Without(good, "blk.1.fc2.weight")).find("'blk.1.fc2.weight' is missing") != std::string::npos);
  CHECK(Refusal(Without(good, "blk.0.fc1.weight")).find("'blk.0.fc2.weight' is no part of") != std::string::npos);
  for (const char* name : {"blk.1.fc1.weight", "blk.0.fc2.weight", "blk.0.ffn_down_t.weight"}) {
    GgufWriter bad = good;
    for (auto& tensor : bad.tensors)
      if (tensor.name == name) std::swap(tensor.ne[0], tensor.ne[1]);
    CHECK(Refusal(bad).find(std::string("'") + name + "' has the shape") != std::string::npos);
  }
  TinyOptions odd{.n_ff = 80, .predictor_rank = 32};  // no multiple of 32
  CHECK(Refusal(TinyModel(odd)).find("cannot be quantized along them") != std::string::npos);
  odd.type = DType::kF16;
  CHECK(Refusal(TinyModel(odd)) == "none");
}

}  // namespace thermocline
