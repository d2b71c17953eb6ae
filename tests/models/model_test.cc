#include "models/model.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "models/error.h"
#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

using W = GgufWriter;

ModelConfig ConfigOf(const GgufWriter& writer) { return Model::FromGguf(writer.Open()).config; }

// "norm linear rope ..." of one layer; -1: outside the layers.
std::string Kinds(const Model& model, int layer) {
  constexpr const char* kNames[] = {"embed", "norm", "linear", "head_norm", "rope", "attention", "gated_act", "act"};
  std::string kinds;
  for (const Op& op : model.program.ops) {
    if (op.layer != layer) continue;
    if (!kinds.empty()) kinds += ' ';
    kinds += kNames[static_cast<int>(op.kind)];
  }
  return kinds;
}

std::filesystem::path Cached(const char* name) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::filesystem::path base = cache != nullptr && *cache != 0
                                         ? std::filesystem::path(cache)
                                         : std::filesystem::path(home ? home : "") / ".cache";
  return base / "thermocline" / "models" / name;
}

const Op& OpOf(const Model& model, OpKind kind, int layer, int nth = 0) {
  for (const Op& op : model.program.ops) {
    if (op.kind == kind && op.layer == layer && nth-- == 0) return op;
  }
  throw std::runtime_error("no such op");
}

}  // namespace

TEST_CASE("model: a llama file") {
  const GgufFile file = TinyModel({.biases = true, .tied = false}).Open();
  const Model model = Model::FromGguf(file);
  const ModelConfig& config = model.config;
  CHECK(config.arch.name == std::string("llama"));
  CHECK(config.n_layer == 2);
  CHECK(config.n_embd == 64);
  CHECK(config.n_ff == 96);
  CHECK(config.n_head == 4);
  CHECK(config.n_head_kv == 2);
  CHECK(config.head_dim == 16);
  CHECK(config.n_vocab == 288);
  CHECK(config.n_ctx_train == 256);
  CHECK(config.norm_eps == 1e-5f);
  CHECK(config.attention_scale == 0.25f);
  CHECK(config.embedding_scale == 1);
  CHECK(config.window == 0);
  CHECK(config.rope_dims == 16);
  CHECK(config.rope_base == 10000);
  CHECK(config.rope_scale == 1);
  CHECK_FALSE(config.IsWindowLayer(0));

  CHECK(Kinds(model, -1) == "embed norm linear");
  CHECK(Kinds(model, 1) == "norm linear rope rope attention linear norm linear gated_act linear");
  // Every tensor of the file has one weight.
  CHECK(model.weights.size() == file.tensors().size());
  const Op& qkv = OpOf(model, OpKind::kLinear, 0, 0);
  REQUIRE(qkv.n_projections == 3);
  CHECK(qkv.in == Slot::kNormed);
  CHECK(qkv.projections[1].out == Slot::kKey);
  const Weight& key = model.weights[static_cast<size_t>(qkv.projections[1].weight)];
  CHECK(key.tensor->name == "blk.0.attn_k.weight");
  CHECK(key.matrix);
  CHECK(key.n == 32);
  CHECK(key.k == 64);
  const Weight& key_bias = model.weights[static_cast<size_t>(qkv.projections[1].bias)];
  CHECK(key_bias.tensor->name == "blk.0.attn_k.bias");
  CHECK_FALSE(key_bias.matrix);
  CHECK(key_bias.n == 32);
  const Op& output = OpOf(model, OpKind::kLinear, 0, 1);
  CHECK(output.accumulate);
  CHECK(output.projections[0].out == Slot::kHidden);
  CHECK(OpOf(model, OpKind::kGatedAct, 0).activation == Activation::kSilu);
  const Op& head = OpOf(model, OpKind::kLinear, -1);
  CHECK(head.wanted_rows);
  CHECK(model.weights[static_cast<size_t>(head.projections[0].weight)].tensor->name == "output.weight");
  CHECK(model.program.width[static_cast<size_t>(Slot::kKey)] == 32);
  CHECK(model.program.width[static_cast<size_t>(Slot::kLogits)] == 288);
}

TEST_CASE("model: a gemma3 file") {
  const GgufFile file = TinyModel({.arch = "gemma3", .n_layer = 7}).Open();
  const Model model = Model::FromGguf(file);
  const ModelConfig& config = model.config;
  CHECK(config.embedding_scale == 8);
  CHECK(config.window == 8);
  for (int layer = 0; layer < 7; ++layer) CHECK(config.IsWindowLayer(layer) == (layer != 5));
  CHECK(Kinds(model, 3) ==
        "norm linear head_norm head_norm rope rope attention linear norm norm linear gated_act linear norm");
  CHECK(OpOf(model, OpKind::kAttention, 0).window == 8);
  CHECK(OpOf(model, OpKind::kAttention, 5).window == 0);
  CHECK(OpOf(model, OpKind::kGatedAct, 0).activation == Activation::kGeluTanh);
  CHECK(OpOf(model, OpKind::kEmbed, -1).scale == 8);
  const Op& post_norm = OpOf(model, OpKind::kNorm, 0, 1);
  CHECK(post_norm.in == Slot::kBranch);
  CHECK(post_norm.out == Slot::kHidden);
  CHECK(post_norm.accumulate);
  // The head is tied: the embedding is one weight, used twice.
  const Op& head = OpOf(model, OpKind::kLinear, -1);
  CHECK(head.projections[0].weight == OpOf(model, OpKind::kEmbed, -1).weight);
}

TEST_CASE("model: an opt file") {
  const GgufFile file = TinyModel({.arch = "opt", .biases = true}).Open();
  const Model model = Model::FromGguf(file);
  CHECK(model.config.norm_eps == 1e-5f);
  CHECK(model.config.HasLearnedPositions());
  CHECK(Kinds(model, -1) == "embed norm linear");
  CHECK(Kinds(model, 1) == "norm linear attention linear norm linear act linear");
  CHECK(model.weights.size() == file.tensors().size());
  const Op& embed = OpOf(model, OpKind::kEmbed, -1);
  REQUIRE(embed.positions >= 0);
  CHECK(model.weights[static_cast<size_t>(embed.positions)].n == 258);
  CHECK(embed.position_offset == 2);
  for (const int layer : {-1, 0, 1}) {
    const Op& norm = OpOf(model, OpKind::kNorm, layer);
    REQUIRE(norm.bias >= 0);
    CHECK(model.weights[static_cast<size_t>(norm.bias)].tensor->name ==
          (layer < 0 ? "output_norm.bias" : fmt::format("blk.{}.attn_norm.bias", layer)));
  }
  const Op& up = OpOf(model, OpKind::kLinear, 0, 2);
  CHECK(up.n_projections == 1);
  CHECK(model.weights[static_cast<size_t>(up.projections[0].weight)].tensor->name == "blk.0.ffn_up.weight");
  const Op& act = OpOf(model, OpKind::kAct, 0);
  CHECK(act.activation == Activation::kRelu);
  CHECK(act.in == up.projections[0].out);
  CHECK(OpOf(model, OpKind::kLinear, 0, 3).in == act.out);
  CHECK(model.program.width[static_cast<size_t>(Slot::kUp)] == 0);
  // The other architectures have none of it.
  const GgufFile llama_file = TinyModel().Open();
  const Model llama = Model::FromGguf(llama_file);
  CHECK_FALSE(llama.config.HasLearnedPositions());
  CHECK(OpOf(llama, OpKind::kEmbed, -1).positions == -1);
  CHECK(OpOf(llama, OpKind::kNorm, 0).bias == -1);
}

TEST_CASE("model: a table of positions without the rows in front of the first") {
  GgufWriter writer = TinyModel({.arch = "opt"});
  writer.Tensor("position_embd.weight", DType::kF16, {64, 256}, ByteVector(64 * 256 * 2));
  const GgufFile file = writer.Open();
  const Model model = Model::FromGguf(file);
  CHECK(OpOf(model, OpKind::kEmbed, -1).position_offset == 0);
}

TEST_CASE("model: rope") {
  SUBCASE("linear factors divide positions, in global layers only") {
    GgufWriter writer = TinyModel({.arch = "gemma3", .n_layer = 6});
    writer.F32("gemma3.rope.freq_base", 1e6f).String("gemma3.rope.scaling.type", "linear");
    writer.F32("gemma3.rope.scaling.factor", 8);
    const GgufFile file = writer.Open();
    const Model model = Model::FromGguf(file);
    for (const int nth : {0, 1}) {
      CHECK(OpOf(model, OpKind::kRope, 0, nth).rope_base == 10000);
      CHECK(OpOf(model, OpKind::kRope, 0, nth).rope_scale == 1);
      CHECK(OpOf(model, OpKind::kRope, 5, nth).rope_base == 1e6f);
      CHECK(OpOf(model, OpKind::kRope, 5, nth).rope_scale == 0.125f);
      CHECK(OpOf(model, OpKind::kRope, 5, nth).rope == RopeKind::kHalves);
    }
  }
  SUBCASE("the file may name the base of window layers") {
    CHECK(ConfigOf(TinyModel({.arch = "gemma3"}).F32("gemma3.rope.freq_base_swa", 500)).local_rope_base == 500);
  }
  SUBCASE("the old name of the factor") {
    CHECK(ConfigOf(TinyModel().F32("llama.rope.scale_linear", 4)).rope_scale == 0.25f);
  }
  SUBCASE("type none ignores the factor") {
    GgufWriter writer = TinyModel().F32("llama.rope.scaling.factor", 4).String("llama.rope.scaling.type", "none");
    CHECK(ConfigOf(writer).rope_scale == 1);
  }
  SUBCASE("factors per frequency") {
    GgufWriter writer = TinyModel();
    writer.Tensor("rope_freqs.weight", DType::kF32, {8}, Bytes(std::vector<float>{1, 1, 1, 1, 2, 4, 8, 8}));
    const GgufFile file = writer.Open();
    const Model model = Model::FromGguf(file);
    const WeightId factors = OpOf(model, OpKind::kRope, 1).rope_factors;
    REQUIRE(factors >= 0);
    CHECK(model.weights[static_cast<size_t>(factors)].tensor->name == "rope_freqs.weight");
  }
  SUBCASE("fewer dimensions than a head has") {
    CHECK(ConfigOf(TinyModel().U32("llama.rope.dimension_count", 8)).rope_dims == 8);
  }
}

TEST_CASE("model: window layers as the file says") {
  const auto windows = [](const GgufWriter& writer) {
    const ModelConfig config = ConfigOf(writer);
    std::string layers;
    for (int layer = 0; layer < config.n_layer; ++layer) layers += config.IsWindowLayer(layer) ? 'w' : 'g';
    return layers;
  };
  constexpr const char* kKey = "gemma3.attention.sliding_window_pattern";
  const GgufWriter six = TinyModel({.arch = "gemma3", .n_layer = 6});
  CHECK(windows(six) == "wwwwwg");
  CHECK(windows(GgufWriter(six).U32(kKey, 3)) == "wwgwwg");
  CHECK(windows(GgufWriter(six).U32(kKey, 1)) == "gggggg");
  CHECK(windows(GgufWriter(six).U32(kKey, 0)) == "wwwwww");
  CHECK(windows(GgufWriter(six).Array(kKey, W::kBool, 6, {1, 1, 0, 1, 1, 0})) == "wwgwwg");
  CHECK(windows(GgufWriter(six).Array(kKey, W::kBool, 6, {1, 1, 1, 1, 1, 1})) == "wwwwww");
  CHECK(windows(GgufWriter(six).Array(kKey, W::kBool, 6, {0, 0, 0, 0, 0, 0})) == "gggggg");
  CHECK(windows(GgufWriter(six).U32("gemma3.attention.sliding_window", 0)) == "gggggg");
  // A window as long as the context is none.
  CHECK(windows(TinyModel().U32("llama.attention.sliding_window", 256)) == "gg");
}

TEST_CASE("model: attention scale") {
  CHECK(ConfigOf(TinyModel().F32("llama.attention.scale", 0.5f)).attention_scale == 0.5f);
  // gemma3 27B, known by its 62 layers, takes n_embd / n_head in place of the head's length.
  TinyOptions large = {.arch = "gemma3", .type = DType::kQ4_0, .n_layer = 62, .n_embd = 64, .n_ff = 32, .n_head = 1};
  large.n_head_kv = 1;
  large.head_dim = 32;
  CHECK(ConfigOf(TinyModel(large)).attention_scale == 0.125f);
  large.n_layer = 2;
  CHECK(ConfigOf(TinyModel(large)).attention_scale == doctest::Approx(0.1767767));
}

TEST_CASE("model: heads follow from the embedding where the file does not say") {
  GgufWriter writer = TinyModel();
  writer.Remove("llama.attention.key_length").Remove("llama.attention.value_length");
  CHECK(ConfigOf(writer).head_dim == 16);
  GgufWriter all_kv = TinyModel({.n_head_kv = 4});
  CHECK(ConfigOf(all_kv.Remove("llama.attention.head_count_kv")).n_head_kv == 4);
}

TEST_CASE("model: vectors may be halves, the vocabulary may be absent") {
  GgufWriter writer = TinyModel();
  writer.Tensor("output_norm.weight", DType::kF16, {64}, ByteVector(128));
  writer.Remove("tokenizer.ggml.tokens");
  CHECK(ConfigOf(writer).n_vocab == 288);
}

TEST_CASE("model: another architecture row is obeyed as it stands") {
  const GgufFile file = TinyModel({.arch = "gemma3", .n_layer = 6}).Open();
  Arch arch = *FindArch("gemma3");
  arch.qk_norm = false;
  CHECK(Kinds(Model::FromGguf(file, arch), 0).find("head_norm") == std::string::npos);
  arch = *FindArch("gemma3");
  arch.post_norms = false;
  CHECK(OpOf(Model::FromGguf(file, arch), OpKind::kLinear, 0, 1).accumulate);
  arch = *FindArch("gemma3");
  arch.scale_embedding = false;
  CHECK(Model::FromGguf(file, arch).config.embedding_scale == 1);
  arch = *FindArch("gemma3");
  arch.global_period = 2;
  CHECK_FALSE(Model::FromGguf(file, arch).config.IsWindowLayer(1));
  arch.global_period = 0;
  CHECK(Model::FromGguf(file, arch).config.window == 0);
  arch = *FindArch("gemma3");
  arch.local_rope_base = 77;
  CHECK(OpOf(Model::FromGguf(file, arch), OpKind::kRope, 0).rope_base == 77);
}

TEST_CASE("model: the file may name another activation") {
  const GgufFile file = TinyModel({.activation = "relu"}).Open();
  CHECK(OpOf(Model::FromGguf(file), OpKind::kGatedAct, 1).activation == Activation::kRelu);
  CHECK(OpOf(Model::FromGguf(file, *FindArch("llama")), OpKind::kGatedAct, 1).activation == Activation::kSilu);
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu})
    CHECK(FindActivation(Name(activation)) == activation);
  CHECK_FALSE(FindActivation("").has_value());
}

TEST_CASE("model: the table knows its rows by name") {
  std::set<std::string> names;
  for (const Arch& arch : Archs()) {
    CHECK(FindArch(arch.name) == &arch);
    names.insert(arch.name);
  }
  CHECK(names == std::set<std::string>{"gemma3", "llama", "opt"});
  CHECK(FindArch("mamba") == nullptr);
}

TEST_CASE("model: the cached models") {
  const auto smollm2 = Cached("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (std::filesystem::exists(smollm2)) {
    const GgufFile file = GgufFile::Open(smollm2);
    const Model model = Model::FromGguf(file);
    CHECK(model.config.n_layer == 30);
    CHECK(model.config.n_vocab == 49152);
    CHECK(model.config.rope_base == 100000);
    CHECK(model.weights.size() == 272);
  } else {
    MESSAGE("SKIPPED: not in the cache: " << smollm2.string());
  }
  const auto gemma3 = Cached("gemma-3-270m-q4_k_m.gguf");
  if (std::filesystem::exists(gemma3)) {
    const GgufFile file = GgufFile::Open(gemma3);
    const Model model = Model::FromGguf(file);
    CHECK(model.config.n_layer == 18);
    CHECK(model.config.window == 512);
    CHECK(model.config.rope_base == 1e6f);
    CHECK(model.config.local_rope_base == 1e4f);
    CHECK(model.weights.size() == 236);
  } else {
    MESSAGE("SKIPPED: not in the cache: " << gemma3.string());
  }
}

}  // namespace thermocline
