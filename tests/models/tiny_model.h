// Whole models small enough for a test: random weights of any type, all architectures, a vocabulary of single bytes.
// Also the seeds of tests/fuzz.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "models/dtype.h"
#include "tests/models/gguf_writer.h"

namespace thermocline {

// n random weights of `type` of about standard deviation `scale`, as blocks of random bits with fitting scales.
inline ByteVector RandomWeights(DType type, int64_t n, float scale, std::mt19937& random) {
  const DTypeInfo& info = Info(type);
  ByteVector bytes(static_cast<size_t>(n / info.block * info.block_bytes));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  const auto put_half = [](uint8_t* at, float value) {
    const uint16_t half = FloatToHalf(value);
    std::memcpy(at, &half, sizeof half);
  };
  std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);
  for (int64_t i = 0; i < n / info.block; ++i) {
    uint8_t* block = bytes.data() + i * info.block_bytes;
    switch (type) {
      case DType::kF32: {
        const float value = uniform(random) * scale;
        std::memcpy(block, &value, sizeof value);
        break;
      }
      case DType::kF16: put_half(block, uniform(random) * scale); break;
      case DType::kBF16: {
        const float value = uniform(random) * scale;
        std::memcpy(block, reinterpret_cast<const uint8_t*>(&value) + 2, 2);
        break;
      }
      case DType::kQ4_0: put_half(block, scale / 4.6f); break;
      case DType::kQ5_0: put_half(block, scale / 9.2f); break;
      case DType::kQ8_0: put_half(block, scale / 74); break;
      case DType::kQ4_1:
        put_half(block, scale / 4.6f);
        put_half(block + 2, -7.5f * scale / 4.6f);
        break;
      case DType::kQ5_1:
        put_half(block, scale / 9.2f);
        put_half(block + 2, -15.5f * scale / 9.2f);
        break;
      case DType::kQ4_K:
        put_half(block, scale / (4.6f * 32));
        put_half(block + 2, scale * 7.5f / (4.6f * 32));
        break;
      case DType::kQ5_K:
        put_half(block, scale / (9.2f * 32));
        put_half(block + 2, scale * 15.5f / (9.2f * 32));
        break;
      case DType::kQ6_K: put_half(block + 208, scale / (18.5f * 74)); break;
      case DType::kQ2_K:
        put_half(block + 80, scale / (1.1f * 7.5f));
        put_half(block + 82, scale * 1.5f / (1.1f * 7.5f));
        break;
      case DType::kQ3_K: put_half(block + 108, scale / (2.3f * 18.5f)); break;
      case DType::kIQ4_NL: put_half(block, scale / 69); break;
      case DType::kIQ4_XS: put_half(block, scale / (69 * 18.5f)); break;
      case DType::kMXFP4: block[0] = static_cast<uint8_t>(128 + std::lround(std::log2(scale / 5.8f))); break;
    }
  }
  return bytes;
}

struct TinyOptions {
  std::string arch = "llama";  // or "gemma3", "opt"
  DType type = DType::kQ8_0;   // of the matrices; n_embd and n_ff must be multiples of its block
  int n_layer = 2, n_embd = 64, n_ff = 96, n_head = 4, n_head_kv = 2, head_dim = 16;
  int n_vocab = 288;  // under 259 there is no room for the vocabulary, and the file has none
  int n_ctx_train = 256;
  int window = 8;               // gemma3 only
  std::string activation = "";  // in thermocline.activation, where there is one
  bool biases = false;
  bool tied = true;
  int predictor_rank = 0;  // above 0: a file of PowerInfer's, with predictors of that rank
  uint32_t seed = 1;
};

// A vocabulary of `n_vocab` SentencePiece tokens: <unk>, <s>, </s>, 256 bytes, then words; for gemma3 and llama alike.
inline void AddTinyVocabulary(GgufWriter& writer, int n_vocab) {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<int32_t> types = {2, 3, 3};  // unknown, control, control
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kDigits[] = "0123456789ABCDEF";
    tokens.push_back(std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">");
    types.push_back(6);  // byte
  }
  for (int i = 0; static_cast<int>(tokens.size()) < n_vocab; ++i) {
    tokens.push_back(i < 26 ? std::string(1, static_cast<char>('a' + i)) : "\u2581w" + std::to_string(i));
    types.push_back(1);  // normal
  }
  tokens.resize(static_cast<size_t>(n_vocab));
  types.resize(tokens.size());
  std::vector<float> scores(tokens.size());
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = -static_cast<float>(i);
  writer.String("tokenizer.ggml.model", "llama").Strings("tokenizer.ggml.tokens", tokens);
  writer.Floats("tokenizer.ggml.scores", scores).Ints("tokenizer.ggml.token_type", types);
  writer.U32("tokenizer.ggml.bos_token_id", 1).U32("tokenizer.ggml.eos_token_id", 2);
  writer.U32("tokenizer.ggml.unknown_token_id", 0).Bool("tokenizer.ggml.add_space_prefix", false);
}

inline GgufWriter TinyModel(const TinyOptions& o = {}) {
  const bool gemma = o.arch == "gemma3", opt = o.arch == "opt";
  const auto key = [&](const char* name) { return o.arch + "." + name; };
  const bool powerinfer = o.predictor_rank > 0;
  GgufWriter writer;
  if (powerinfer) writer.magic = "PWRI";
  writer.String("general.architecture", o.arch);
  const auto u32 = [&](const char* name, int value) { writer.U32(key(name), static_cast<uint32_t>(value)); };
  u32("block_count", o.n_layer);
  u32("context_length", o.n_ctx_train + (powerinfer && opt ? 2 : 0));
  u32("embedding_length", o.n_embd);
  u32("feed_forward_length", o.n_ff);
  u32("attention.head_count", o.n_head);
  u32("attention.head_count_kv", o.n_head_kv);
  u32("attention.key_length", o.head_dim);
  u32("attention.value_length", o.head_dim);
  writer.F32(key(opt ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"), 1e-5f);
  if (!opt) writer.F32(key("rope.freq_base"), 10000);
  if (gemma) u32("attention.sliding_window", o.window);
  if (!o.activation.empty()) writer.String("thermocline.activation", o.activation);
  if (o.n_vocab >= 259) AddTinyVocabulary(writer, o.n_vocab);

  std::mt19937 random(o.seed);
  const auto matrix = [&](const std::string& name, int n, int k) {
    const float scale = 2 / std::sqrt(static_cast<float>(k));
    const DType type = k % Info(o.type).block == 0 ? o.type : k % 32 == 0 ? DType::kQ4_0 : DType::kF32;
    writer.Tensor(name, type, {static_cast<uint64_t>(k), static_cast<uint64_t>(n)},
                  RandomWeights(type, int64_t{n} * k, scale, random));
  };
  const auto vector = [&](const std::string& name, int n, float around) {
    std::vector<float> values(static_cast<size_t>(n));
    std::uniform_real_distribution<float> uniform(around - 0.5f, around + 0.5f);
    for (float& value : values) value = uniform(random);
    writer.Tensor(name, DType::kF32, {static_cast<uint64_t>(n)}, Bytes(values));
  };
  const auto linear = [&](const std::string& name, int n, int k) {
    matrix(name + ".weight", n, k);
    if (o.biases) vector(name + ".bias", n, 0);
  };
  const auto norm = [&](const std::string& name, int n) {
    vector(name + ".weight", n, 1);
    if (opt) vector(name + ".bias", n, 0);
  };
  matrix("token_embd.weight", o.n_vocab, o.n_embd);
  if (opt) matrix("position_embd.weight", o.n_ctx_train + 2, o.n_embd);
  norm("output_norm", o.n_embd);
  if (!o.tied) matrix("output.weight", o.n_vocab, o.n_embd);
  for (int layer = 0; layer < o.n_layer; ++layer) {
    const std::string blk = "blk." + std::to_string(layer) + ".";
    norm(blk + "attn_norm", o.n_embd);
    linear(blk + "attn_q", o.n_head * o.head_dim, o.n_embd);
    linear(blk + "attn_k", o.n_head_kv * o.head_dim, o.n_embd);
    linear(blk + "attn_v", o.n_head_kv * o.head_dim, o.n_embd);
    linear(blk + "attn_output", o.n_embd, o.n_head * o.head_dim);
    norm(blk + "ffn_norm", o.n_embd);
    if (!opt) linear(blk + "ffn_gate", o.n_ff, o.n_embd);
    linear(blk + "ffn_up", o.n_ff, o.n_embd);
    if (powerinfer) {
      matrix(blk + "ffn_down_t.weight", o.n_ff, o.n_embd);
      matrix(blk + "fc1.weight", o.predictor_rank, o.n_embd);
      matrix(blk + "fc2.weight", o.n_ff, o.predictor_rank);
      if (o.biases) vector(blk + "ffn_down.bias", o.n_embd, 0);
    } else {
      linear(blk + "ffn_down", o.n_embd, o.n_ff);
    }
    if (!gemma) continue;
    norm(blk + "attn_q_norm", o.head_dim);
    norm(blk + "attn_k_norm", o.head_dim);
    norm(blk + "post_attention_norm", o.n_embd);
    norm(blk + "post_ffw_norm", o.n_embd);
  }
  return writer;
}

}  // namespace thermocline
