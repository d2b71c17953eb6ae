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

struct Subject {
  explicit Subject(const TinyOptions& options) : file(TinyModel(options).Open()) {}

  bool tied() const { return file.FindTensor("output.weight") == nullptr; }
  std::vector<DType> Types(DType type) const { return PlanTypes(file, model, type, true).types; }
  Encoding Layerwise(const std::vector<DType>& types, std::span<const TokenId> tokens, int n_threads = 2,
                     const Encoding* known = nullptr) {
    Team team(n_threads);
    return EncodeLayerwise(file, model, types, tied() ? &head : nullptr, tokens, kContext, team, known);
  }
  Encoding Apart(const std::vector<DType>& types) {
    Encoding encoding{types, std::vector<std::vector<uint8_t>>(types.size())};
    Team team(2);
    for (size_t id = 0; id < model.weights.size(); ++id) {
      const Tensor& tensor = *model.weights[id].tensor;
      const auto i = static_cast<size_t>(&tensor - file.tensors().data());
      if (types[i] == tensor.type) continue;
      const Feedback feedback = FeedbackOfInputs(model, static_cast<WeightId>(id), engine, text, kContext);
      encoding.bytes[i] = EncodeTensor(file, tensor, types[i], &feedback, team);
    }
    return encoding;
  }
  double Kl(const Encoding& encoding, std::span<const TokenId> unseen) {
    std::vector<Tensor> tensors;
    const Model rounded = WithTensors(file, model, encoding, tensors);
    Engine other(file, rounded, {.n_ctx = kContext, .n_threads = 2});
    return Judge(engine, *tokenizer, unseen, kContext, RowKind::kPrompt).Measure(other).kl;
  }

  GgufFile file;
  Model model = Model::FromGguf(file);
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  Engine engine{file, model, {.n_ctx = kContext, .n_threads = 2}};
  std::vector<TokenId> text = SomeTokens(2048, 1);
  Feedback head = FeedbackOfInputs(model, model.program.ops[0].weight, engine, text, kContext);  // where it is tied
};

}  // namespace

TEST_CASE("slow: layerwise: nearer to the source than each matrix for itself, in every architecture") {
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
    const double kl = subject.Kl(subject.Layerwise(types, subject.text), unseen);
    const double kl_apart = subject.Kl(subject.Apart(types), unseen);
    CAPTURE(kl);
    CAPTURE(kl_apart);
    CHECK(kl < 0.95 * kl_apart);
  }
}

TEST_CASE("layerwise: what comes before all rounding is encoded as for itself; what keeps its type stays") {
  Subject subject({.type = DType::kF32, .tied = false});
  std::vector<DType> types;
  for (const Tensor& tensor : subject.file.tensors()) types.push_back(tensor.type);
  for (const std::vector<uint8_t>& bytes : subject.Layerwise(types, subject.text).bytes) CHECK(bytes.empty());
  const auto index = [&](const char* name) {
    return static_cast<size_t>(subject.file.FindTensor(name) - subject.file.tensors().data());
  };
  const size_t first = index("blk.0.attn_q.weight"), last = index("blk.1.ffn_down.weight");
  types[first] = types[last] = DType::kQ4_0;
  const auto in_order = subject.Layerwise(types, subject.text).bytes, apart = subject.Apart(types).bytes;
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

TEST_CASE("layerwise: the same bytes from others that are known up to somewhere") {
  for (const bool tied : {false, true}) {
    CAPTURE(tied);
    Subject subject({.type = DType::kF32, .tied = tied});
    const std::vector<DType> wide = subject.Types(DType::kQ5_0);
    const std::span text = std::span(subject.text).first(200);
    const Encoding known = subject.Layerwise(wide, text);
    for (size_t narrow = 0; narrow < wide.size(); ++narrow) {
      if (wide[narrow] == subject.file.tensors()[narrow].type) continue;
      if (tied && narrow % 4 != 0) continue;  // only the head differs, which is the first of them
      CAPTURE(narrow);
      std::vector<DType> types = wide;
      types[narrow] = DType::kQ4_0;
      CHECK(subject.Layerwise(types, text, 2, &known) == subject.Layerwise(types, text));
    }
  }
}

TEST_CASE("layerwise: what is known is taken as it is, up to the first of another type") {
  Subject subject({.type = DType::kF32});
  std::vector<DType> types = subject.Types(DType::kQ5_0);
  Encoding known = subject.Layerwise(types, subject.text);
  const auto index = [&](const char* name) {
    return static_cast<size_t>(subject.file.FindTensor(name) - subject.file.tensors().data());
  };
  const size_t before = index("blk.0.ffn_up.weight"), narrow = index("blk.0.ffn_down.weight"),
               behind = index("blk.1.ffn_up.weight");
  known.bytes[before][2] ^= 1;
  known.bytes[behind][2] ^= 1;
  types[narrow] = DType::kQ4_0;
  const Encoding encoding = subject.Layerwise(types, subject.text, 2, &known);
  CHECK(encoding.bytes[before] == known.bytes[before]);
  CHECK(encoding.bytes[narrow].size() < known.bytes[narrow].size());
  CHECK(encoding.bytes[behind] != known.bytes[behind]);
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
