#include "runtime/layerwise.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "models/error.h"
#include "runtime/judge.h"
#include "runtime/quantizer.h"
#include "tests/models/tiny_model.h"
#include "tests/runtime/some_tokens.h"

namespace thermocline {
namespace {

constexpr int kContext = 64;
using Encoding = std::vector<std::vector<uint8_t>>;

struct Subject {
  explicit Subject(const TinyOptions& options) : file(TinyModel(options).Open()) {}

  bool tied() const { return file.FindTensor("output.weight") == nullptr; }
  std::vector<DType> Types(DType type) const { return PlanTypes(file, model, type, true).types; }
  Encoding Layerwise(std::span<const DType> types, std::span<const TokenId> tokens, int n_threads = 2) {
    const Feedback* embedding = tied() ? calibration.Find(model.program.ops[0].weight) : nullptr;
    return EncodeLayerwise(file, model, types, embedding, tokens, kContext, n_threads);
  }
  Encoding Apart(std::span<const DType> types) {
    Encoding bytes(types.size());
    Team team(2);
    for (size_t id = 0; id < model.weights.size(); ++id) {
      const Tensor& tensor = *model.weights[id].tensor;
      const auto i = static_cast<size_t>(&tensor - file.tensors().data());
      if (types[i] != tensor.type)
        bytes[i] = EncodeTensor(file, tensor, types[i], calibration.Find(static_cast<WeightId>(id)), team);
    }
    return bytes;
  }
  double Kl(std::span<const DType> types, const Encoding& bytes, std::span<const TokenId> unseen) {
    std::vector<Tensor> tensors = file.tensors();
    for (size_t i = 0; i < types.size(); ++i) {
      if (bytes[i].empty()) continue;
      tensors[i].type = types[i];
      tensors[i].data = bytes[i].data();
      tensors[i].bytes = bytes[i].size();
    }
    Model rounded = model;
    for (Weight& weight : rounded.weights)
      weight.tensor = &tensors[static_cast<size_t>(weight.tensor - file.tensors().data())];
    Engine other(file, rounded, {.n_ctx = kContext, .n_threads = 2});
    return Judge(engine, *tokenizer, unseen, kContext).Measure(other).kl;
  }

  GgufFile file;
  Model model = Model::FromGguf(file);
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  Engine engine{file, model, {.n_ctx = kContext, .n_threads = 2}};
  std::vector<TokenId> text = SomeTokens(2048, 1);
  Calibration calibration{model, engine, text, kContext, true};
};

}  // namespace

TEST_CASE("layerwise: nearer to the source than each matrix for itself, in every architecture") {
  const TinyOptions kinds[] = {
      {.arch = "llama", .tied = false}, {.arch = "llama"}, {.arch = "gemma3"}, {.arch = "opt"}};
  for (TinyOptions options : kinds) {
    CAPTURE(options.arch);
    CAPTURE(options.tied);
    options.type = DType::kF32;
    options.n_layer = 4;
    options.seed = 3;
    Subject subject(options);
    const std::vector<DType> types = subject.Types(DType::kQ4_0);
    const std::vector<TokenId> unseen = SomeTokens(1024, 2);
    const double kl = subject.Kl(types, subject.Layerwise(types, subject.text), unseen);
    const double kl_apart = subject.Kl(types, subject.Apart(types), unseen);
    CAPTURE(kl);
    CAPTURE(kl_apart);
    CHECK(kl < 0.95 * kl_apart);
  }
}

TEST_CASE("layerwise: what comes before all rounding is encoded as for itself; what keeps its type stays") {
  Subject subject({.type = DType::kF32, .tied = false});
  std::vector<DType> types;
  for (const Tensor& tensor : subject.file.tensors()) types.push_back(tensor.type);
  for (const std::vector<uint8_t>& bytes : subject.Layerwise(types, subject.text)) CHECK(bytes.empty());
  const auto index = [&](const char* name) {
    return static_cast<size_t>(subject.file.FindTensor(name) - subject.file.tensors().data());
  };
  const size_t first = index("blk.0.attn_q.weight"), last = index("blk.1.ffn_down.weight");
  types[first] = types[last] = DType::kQ4_0;
  const Encoding in_order = subject.Layerwise(types, subject.text), apart = subject.Apart(types);
  CHECK(in_order[first] == apart[first]);
  CHECK(in_order[last] != apart[last]);
  for (size_t i = 0; i < types.size(); ++i) CHECK(in_order[i].empty() == (i != first && i != last));
}

TEST_CASE("layerwise: the same bytes for any number of threads") {
  Subject subject({.type = DType::kF32});
  const std::vector<DType> types = subject.Types(DType::kIQ4_NL);
  const std::span text = std::span(subject.text).first(200);  // no whole number of chunks
  CHECK(subject.Layerwise(types, text, 1) == subject.Layerwise(types, text, 2));
}

TEST_CASE("layerwise: activations that are no numbers are an error") {
  Subject subject({.type = DType::kF32});
  const std::vector<DType> types = subject.Types(DType::kQ4_0);
  const auto norm =
      static_cast<size_t>(subject.file.FindTensor("blk.1.ffn_norm.weight") - subject.file.tensors().data());
  const_cast<float*>(reinterpret_cast<const float*>(subject.file.tensors()[norm].data))[0] =
      std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_WITH_AS(subject.Layerwise(types, subject.text), doctest::Contains("not numbers"), Error);
}

}  // namespace thermocline
