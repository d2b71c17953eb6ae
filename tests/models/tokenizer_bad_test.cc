// Vocabularies that do not hold: each ends in an error that names the key, or does no harm.
#include <doctest/doctest.h>

#include <functional>

#include "models/error.h"
#include "models/limits.h"
#include "tests/models/gguf_writer.h"
#include "tests/models/tiny_vocabulary.h"

namespace thermocline {
namespace {

std::vector<int32_t> TypesOf(const VocabularyData& data) {
  std::vector<int32_t> types;
  for (const TokenType type : data.types) types.push_back(static_cast<int32_t>(type));
  return types;
}

GgufWriter Written(const VocabularyData& data) {
  GgufWriter writer;
  writer.String("tokenizer.ggml.model", data.model).Strings("tokenizer.ggml.tokens", data.tokens);
  writer.Ints("tokenizer.ggml.token_type", TypesOf(data));
  if (!data.pre.empty()) writer.String("tokenizer.ggml.pre", data.pre);
  if (!data.merges.empty()) writer.Strings("tokenizer.ggml.merges", data.merges);
  if (!data.scores.empty()) writer.Floats("tokenizer.ggml.scores", data.scores);
  writer.U32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(data.bos));
  writer.U32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(data.eos));
  if (data.unknown >= 0) writer.U32("tokenizer.ggml.unknown_token_id", static_cast<uint32_t>(data.unknown));
  return writer;
}

TEST_CASE("tokenizer: a GGUF file without tensors is enough") {
  const auto bpe = Tokenizer::FromGguf(Written(TinyBpe()).Open());
  CHECK(bpe->n_vocab() == 272);
  CHECK_FALSE(bpe->add_bos());
  CHECK_FALSE(bpe->add_space_prefix());
  CHECK(TextsOf(*bpe, bpe->Encode("hello<|im_end|>")) == std::vector<std::string>{"hello", "<|im_end|>"});
  const auto spm = Tokenizer::FromGguf(Written(TinySpm()).Open());  // add_bos and the space in front are defaults
  CHECK(TextsOf(*spm, spm->Encode("hello")) == std::vector<std::string>{"<s>", "▁hello"});
  CHECK(spm->bos() == 1);
  CHECK(spm->eos() == 2);
}

TEST_CASE("tokenizer: every field of the vocabulary is checked") {
  struct Case {
    std::string name;
    bool spm;
    std::function<void(GgufWriter&)> change;
    std::string expected;  // in the message
  };
  const auto strings = [](size_t n, const char* text) { return std::vector<std::string>(n, text); };
  const VocabularyData bpe = TinyBpe(), spm = TinySpm();
  auto tokens_with = [](VocabularyData data, size_t at, std::string text) {
    data.tokens[at] = std::move(text);
    return data.tokens;
  };
  const Case cases[] = {
      {"no model", false, [](GgufWriter& w) { w.Remove("tokenizer.ggml.model"); }, "tokenizer.ggml.model"},
      {"unknown model", false, [](GgufWriter& w) { w.String("tokenizer.ggml.model", "rwkv"); },
       "'tokenizer.ggml.model' is 'rwkv'; known tokenizers are gpt2 (byte-level BPE), llama (SentencePiece BPE)"},
      {"unknown pre-tokenizer", false, [](GgufWriter& w) { w.String("tokenizer.ggml.pre", "qwen2"); },
       "'tokenizer.ggml.pre' is 'qwen2'; known pre-tokenizers are default, gpt-2, smollm"},
      {"no pre-tokenizer", false, [](GgufWriter& w) { w.Remove("tokenizer.ggml.pre"); },
       "'tokenizer.ggml.pre' is missing"},
      {"no tokens", false, [](GgufWriter& w) { w.Remove("tokenizer.ggml.tokens"); },
       "'tokenizer.ggml.tokens' is missing"},
      {"no tokens in the array", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.tokens", {}); },
       "'tokenizer.ggml.tokens' is missing or empty"},
      {"tokens are numbers", false,
       [](GgufWriter& w) {
         w.Ints("tokenizer.ggml.tokens", {1, 2});
       },
       "tokenizer.ggml.tokens"},
      {"a token twice", false, [&](GgufWriter& w) { w.Strings("tokenizer.ggml.tokens", tokens_with(bpe, 9, "a")); },
       "'tokenizer.ggml.tokens' holds 'a' at index 9 and again at 97"},
      {"a huge token", false,
       [&](GgufWriter& w) {
         w.Strings("tokenizer.ggml.tokens", tokens_with(bpe, 9, std::string(kMaxTokenBytes + 1, 'x')));
       },
       "holds a token of 1025 bytes at index 9"},
      {"too few types", false,
       [](GgufWriter& w) {
         w.Ints("tokenizer.ggml.token_type", {1, 1});
       },
       "'tokenizer.ggml.token_type' has 2 elements for 272 tokens"},
      {"too many types", false,
       [](GgufWriter& w) { w.Ints("tokenizer.ggml.token_type", std::vector<int32_t>(273, 1)); },
       "'tokenizer.ggml.token_type' has 273 elements for 272 tokens"},
      {"an unknown type", false,
       [](GgufWriter& w) { w.Ints("tokenizer.ggml.token_type", std::vector<int32_t>(272, 7)); },
       "'tokenizer.ggml.token_type' holds 7 at index 0"},
      {"a negative type", false,
       [](GgufWriter& w) { w.Ints("tokenizer.ggml.token_type", std::vector<int32_t>(272, -1)); },
       "'tokenizer.ggml.token_type' holds -1 at index 0"},
      {"types are strings", false, [&](GgufWriter& w) { w.Strings("tokenizer.ggml.token_type", strings(272, "a")); },
       "tokenizer.ggml.token_type"},
      {"no merges", false, [](GgufWriter& w) { w.Remove("tokenizer.ggml.merges"); },
       "'tokenizer.ggml.merges' is missing"},
      {"a merge of one part", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.merges", {"hello"}); },
       "'tokenizer.ggml.merges' holds 'hello' at index 0: not two tokens"},
      {"a merge without a right part", false,
       [](GgufWriter& w) {
         w.Strings("tokenizer.ggml.merges", {"h e", "h "});
       },
       "'tokenizer.ggml.merges' holds 'h ' at index 1: not two tokens"},
      {"an empty merge", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.merges", {""}); },
       "at index 0: not two tokens"},
      {"an unknown left part", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.merges", {"zz e"}); },
       "'zz' is not in the vocabulary"},
      {"an unknown right part", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.merges", {"h zz"}); },
       "'zz' is not in the vocabulary"},
      {"an unknown result", false, [](GgufWriter& w) { w.Strings("tokenizer.ggml.merges", {"z z"}); },
       "'zz' is not in the vocabulary"},
      {"BOS out of bounds", false, [](GgufWriter& w) { w.U32("tokenizer.ggml.bos_token_id", 272); },
       "'tokenizer.ggml.bos_token_id' is 272"},
      {"EOS out of bounds", false, [](GgufWriter& w) { w.U32("tokenizer.ggml.eos_token_id", 0xFFFFFFFF); },
       "tokenizer.ggml.eos_token_id"},
      {"EOT out of bounds", false, [](GgufWriter& w) { w.I32("tokenizer.ggml.eot_token_id", -5); },
       "'tokenizer.ggml.eot_token_id' is -5"},
      {"unknown out of bounds", true, [](GgufWriter& w) { w.U32("tokenizer.ggml.unknown_token_id", 9999); },
       "'tokenizer.ggml.unknown_token_id' is 9999"},
      {"EOS is a string", false, [](GgufWriter& w) { w.String("tokenizer.ggml.eos_token_id", "</s>"); },
       "tokenizer.ggml.eos_token_id"},
      {"BOS wanted but absent", false,
       [](GgufWriter& w) { w.Remove("tokenizer.ggml.bos_token_id").Bool("tokenizer.ggml.add_bos_token", true); },
       "'tokenizer.ggml.add_bos_token' wants a BOS token, but there is no bos_token_id"},
      {"EOS wanted but absent", false,
       [](GgufWriter& w) { w.Remove("tokenizer.ggml.eos_token_id").Bool("tokenizer.ggml.add_eos_token", true); },
       "'tokenizer.ggml.add_eos_token' wants an EOS token, but there is no eos_token_id"},
      {"no scores", true, [](GgufWriter& w) { w.Remove("tokenizer.ggml.scores"); },
       "'tokenizer.ggml.scores' is missing"},
      {"too few scores", true,
       [](GgufWriter& w) {
         w.Floats("tokenizer.ggml.scores", {0, 1});
       },
       "'tokenizer.ggml.scores' has 2 elements"},
      {"a score that is no number", true,
       [](GgufWriter& w) { w.Floats("tokenizer.ggml.scores", std::vector<float>(290, NAN)); }, "tokenizer.ggml.scores"},
      {"a byte token that is none", true,
       [&](GgufWriter& w) { w.Strings("tokenizer.ggml.tokens", tokens_with(spm, 3, "<0xG0>")); },
       "holds '<0xG0>' at index 3 as a byte token"},
      {"a byte missing and no unknown token", true,
       [&](GgufWriter& w) {
         VocabularyData data = spm;
         data.types[3 + 65] = TokenType::kNormal;
         w.Ints("tokenizer.ggml.token_type", TypesOf(data)).Remove("tokenizer.ggml.unknown_token_id");
       },
       "has no byte token <0x41>"},
  };
  for (const Case& bad : cases) {
    CAPTURE(bad.name);
    GgufWriter writer = Written(bad.spm ? spm : bpe);
    bad.change(writer);
    std::string message;
    try {
      Tokenizer::FromGguf(writer.Open("bad.gguf"));
    } catch (const Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    CHECK(message.find(bad.expected) != std::string::npos);
    CHECK(message.find("bad.gguf") != std::string::npos);
  }
}

TEST_CASE("tokenizer: odd tokens do no harm") {
  for (const bool is_spm : {false, true}) {
    CAPTURE(is_spm);
    VocabularyData data = is_spm ? TinySpm() : TinyBpe();
    const auto add = [&](std::string text, TokenType type) {
      data.tokens.push_back(std::move(text));
      data.types.push_back(type);
      if (is_spm) data.scores.push_back(5);
    };
    add("", TokenType::kNormal);
    add("", TokenType::kControl);
    add("\xFF\xFE", TokenType::kNormal);
    add("\xC3", TokenType::kUserDefined);  // half of a character
    add("日本", TokenType::kNormal);
    add("h", is_spm ? TokenType::kUnused : TokenType::kNormal);
    data.tokens.back() = "unused";
    const auto tokenizer = Tokenizer::FromData(std::move(data));
    const int n = tokenizer->n_vocab();
    CHECK(tokenizer->Bytes(n - 6) == "");
    CHECK(tokenizer->Bytes(n - 5, true) == "");
    CHECK(tokenizer->Bytes(n - 4) == "\xFF\xFE");
    CHECK(tokenizer->Decode({n - 4}) == "\uFFFD\uFFFD");
    CHECK(tokenizer->Bytes(n - 2) == "日本");
    CHECK(tokenizer->Bytes(n - 1) == "unused");
    for (const std::string text : {"hello", "日本", "\xC3\xA9", "\xFF\xFE"}) {
      CHECK_NOTHROW(tokenizer->Encode(text));
      CHECK(tokenizer->Decode(tokenizer->Encode("hello")) == "hello");
    }
  }
}

TEST_CASE("tokenizer: without types every token is plain, but for those named by id") {
  GgufWriter writer = Written(TinyBpe());
  writer.Remove("tokenizer.ggml.token_type");
  const auto tokenizer = Tokenizer::FromGguf(writer.Open());
  CHECK(tokenizer->IsControl(tokenizer->bos()));
  CHECK(tokenizer->IsControl(tokenizer->eos()));
  CHECK(tokenizer->FindSpecial("<tag>") == -1);
}

}  // namespace
}  // namespace thermocline
