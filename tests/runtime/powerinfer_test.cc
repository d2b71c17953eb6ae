// PowerInfer's files in whole models.
#include <doctest/doctest.h>

#include "models/error.h"
#include "models/quantize.h"
#include "predictor/file_predictors.h"
#include "runtime/engine.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/play.h"
#include "tests/runtime/tiny_model.h"

namespace thermocline {
namespace {

struct Loaded {
  GgufFile file;
  Model model;
  explicit Loaded(const GgufWriter& writer) : file(writer.Open()), model(Model::FromGguf(file)) {}

  Logits Feed(FfnMode ffn, RowKind kind, const HeatPredictors* predictors = nullptr,
              NeuronCount* count = nullptr) const {
    EngineOptions options{.n_ctx = 64, .n_threads = 2};
    options.load.ffn = ffn;
    if (predictors) options.load.predictors = &predictors->layers;
    Engine engine(file, model, options);
    std::vector<TokenId> tokens;
    for (int i = 0; i < 24; ++i) tokens.push_back((i * 37 + 5) % 280);
    Logits logits = test::Feed(engine, engine.NewSequence(), tokens, kind == RowKind::kPrompt ? 24 : 1, kind);
    if (count) *count = engine.TakeNeuronCount();
    return logits;
  }
};

// The same model as anybody else's file: down turned round, in `type`, no predictors.
GgufWriter Plain(GgufWriter writer, DType type) {
  writer.magic = "GGUF";
  writer.String("thermocline.activation", "relu");
  std::erase_if(writer.tensors, [](const auto& tensor) { return tensor.name.find(".fc") != std::string::npos; });
  for (GgufWriter::TensorEntry& tensor : writer.tensors) {
    const size_t suffix = tensor.name.find("_t.weight");
    if (suffix == std::string::npos) continue;
    const int64_t n = tensor.ne[0], k = tensor.ne[1];
    std::vector<float> values(static_cast<size_t>(n * k)), row(static_cast<size_t>(k));
    Dequantize(static_cast<DType>(tensor.type), tensor.data.data(), n * k, values.data());
    const int64_t row_bytes = k / Info(type).block * Info(type).block_bytes;
    tensor.data.resize(static_cast<size_t>(n * row_bytes));
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < k; ++j) row[j] = values[j * n + i];
      Quantize(type, row.data(), nullptr, k, tensor.data.data() + i * row_bytes);
    }
    tensor.name.replace(suffix, 2, "");
    tensor.type = static_cast<uint32_t>(type);
    std::swap(tensor.ne[0], tensor.ne[1]);
  }
  return writer;
}

TinyOptions Options(DType type) { return {.type = type, .n_embd = 160, .n_ff = 544, .predictor_rank = 32}; }

}  // namespace

TEST_CASE("powerinfer: the same numbers as of the model with its down turned round") {
  for (const DType type : {DType::kF16, DType::kQ4_0, DType::kQ5_1, DType::kQ8_0}) {
    CAPTURE(Info(type).name);
    const GgufWriter writer = TinyModel(Options(type));
    const Loaded powerinfer(writer), plain(Plain(writer, type == DType::kF16 ? type : DType::kQ8_0));
    for (const RowKind kind : {RowKind::kPrompt, RowKind::kGenerated})
      for (const FfnMode ffn : {FfnMode::kDense, FfnMode::kExact})
        CHECK(powerinfer.Feed(ffn, kind) == plain.Feed(ffn, kind));
  }
}

TEST_CASE("powerinfer: its predictors name neurons by a threshold, behind a ReLU") {
  GgufWriter writer = TinyModel(Options(DType::kQ8_0));
  const Loaded none(writer);
  CHECK(ReadFilePredictors(none.file, none.model).layers[0].level == std::nextafter(0.0f, -1.0f));
  writer.F32("powerinfer.sparse_threshold", -1e30f);
  const Loaded loaded(writer);
  HeatPredictors predictors = ReadFilePredictors(loaded.file, loaded.model);
  NeuronCount count;
  const Logits all = loaded.Feed(FfnMode::kPredicted, RowKind::kGenerated, &predictors, &count);
  CHECK(count.predicted == count.neurons);
  CHECK(Compare(loaded.Feed(FfnMode::kExact, RowKind::kGenerated), all, 1).worst < 1e-3);

  // out(max(0, in x)) - out(max(0, -in x)) is out(in x) without the ReLU, and 2 out(in x) if it were left out.
  HeatPredictors linear = predictors, twice = predictors;
  for (NeuronPredictor& layer : linear.layers) {
    layer.relu = false;
    layer.level = 3;
  }
  for (NeuronPredictor& layer : twice.layers) {
    layer.level = 3;
    const int64_t in_bytes = std::ssize(layer.in), out_row = std::ssize(layer.out) / 544;
    std::vector<float> in(static_cast<size_t>(in_bytes / 34 * 32)), out(static_cast<size_t>(out_row / 34 * 32));
    Dequantize(DType::kQ8_0, layer.in.data(), std::ssize(in), in.data());
    for (float& value : in) value = -value;
    layer.in.resize(static_cast<size_t>(2 * in_bytes));
    Quantize(DType::kQ8_0, in.data(), nullptr, std::ssize(in), layer.in.data() + in_bytes);
    std::vector<uint8_t> both;
    for (int64_t neuron = 0; neuron < 544; ++neuron) {
      const uint8_t* row = layer.out.data() + neuron * out_row;
      Dequantize(DType::kQ8_0, row, std::ssize(out), out.data());
      for (float& value : out) value = -value;
      both.insert(both.end(), row, row + out_row);
      both.resize(both.size() + static_cast<size_t>(out_row));
      Quantize(DType::kQ8_0, out.data(), nullptr, std::ssize(out), both.data() + both.size() - out_row);
    }
    layer.out = both;
    layer.rank *= 2;
  }
  NeuronCount of_linear, of_twice;
  loaded.Feed(FfnMode::kPredicted, RowKind::kGenerated, &linear, &of_linear);
  loaded.Feed(FfnMode::kPredicted, RowKind::kGenerated, &twice, &of_twice);
  CHECK(of_linear.predicted > of_linear.neurons / 10);
  CHECK(of_linear.predicted < of_linear.neurons * 45 / 100);
  CHECK(std::abs(of_linear.predicted - of_twice.predicted) < of_linear.neurons / 200);
}

TEST_CASE(
    "powerinfer: predictors of a rank between blocks are filled up with zeros, and what is no number is refused") {
  TinyOptions options = Options(DType::kF16);
  options.predictor_rank = 40;
  GgufWriter writer = TinyModel(options);
  const Loaded loaded(writer);
  const HeatPredictors predictors = ReadFilePredictors(loaded.file, loaded.model);
  CHECK(predictors.layers[1].rank == 64);
  CHECK_FALSE(predictors.complete());
  const Tensor& out = *loaded.model.predictors[1].out;
  std::vector<float> expected(static_cast<size_t>(out.ne[0] * out.ne[1])), row(64);
  Dequantize(out.type, out.data, std::ssize(expected), expected.data());
  for (int neuron = 0; neuron < 544; ++neuron) {
    Dequantize(DType::kQ8_0, predictors.layers[1].out.data() + neuron * 68, 64, row.data());
    for (int i = 0; i < 64; ++i)
      CHECK(row[i] == doctest::Approx(i < 40 ? expected[neuron * 40 + i] : 0).epsilon(0.01).scale(0.5));
  }
  for (auto& tensor : writer.tensors)
    if (tensor.name == "blk.1.fc2.weight") tensor.data[81] = 0x7e;  // the high byte of one F16
  const Loaded damaged(writer);
  CHECK_THROWS_WITH_AS(ReadFilePredictors(damaged.file, damaged.model), doctest::Contains("in row 1 that is none"),
                       Error);
}

}  // namespace thermocline
