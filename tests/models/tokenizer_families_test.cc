// Both families on vocabularies small enough to check by hand.
#include <doctest/doctest.h>

#include <random>

#include "models/error.h"
#include "models/limits.h"
#include "models/tokenizer_merge.h"
#include "models/tokenizer_split.h"
#include "tests/models/tiny_vocabulary.h"

namespace thermocline {
namespace {

using Texts = std::vector<std::string>;

Texts Pieces(const Tokenizer& tokenizer, std::string_view text, bool parse_special = true) {
  return TextsOf(tokenizer, tokenizer.Encode(text, {.add_bos_eos = false, .parse_special = parse_special}));
}

Texts Words(PreTokenizer kind, std::string_view text) {
  Texts words;
  SplitWords(kind, text, [&](std::string_view word) { words.emplace_back(word); });
  return words;
}

TEST_CASE("tokenizer: pre-tokenizers cut as their regexes do") {
  using enum PreTokenizer;
  CHECK(Words(kGpt2, "I'll say  'hi' 123x\n\n y ") ==
        Texts{"I", "'ll", " say", " ", " '", "hi", "'", " 123", "x", "\n\n", " y", " "});
  CHECK(Words(kGpt2, "a\n b\t\tc") == Texts{"a", "\n", " b", "\t", "\t", "c"});
  CHECK(Words(kGpt2, "é中 ١٢ ½!? \xE2\x80\xA8z") == Texts{"é中", " ١٢", " ½", "!?", " ", "\xE2\x80\xA8", "z"});
  CHECK(Words(kGpt2, "IT'S it's 'sx") == Texts{"IT", "'", "S", " it", "'s", " '", "sx"});
  CHECK(Words(kSmollm, "a 12  3x") == Texts{"a", " ", "1", "2", "  ", "3", "x"});
  CHECK(Words(kDefault, "ab, 12345 c$!") == Texts{"ab", ",", " ", "123", "45", " c", "$!"});
  CHECK(Words(kGpt2, "").empty());
  CHECK(Words(kSmollm, "   ") == Texts{"   "});
}

TEST_CASE("tokenizer: byte-level BPE merges by rank within words") {
  const auto tokenizer = Tokenizer::FromData(TinyBpe());
  CHECK(Pieces(*tokenizer, "hello hello") == Texts{"hello", "Ġhello"});
  CHECK(Pieces(*tokenizer, "hhell") == Texts{"h", "hell"});
  CHECK(Pieces(*tokenizer, "aaaaaaa") == Texts{"aaaa", "aa", "a"});
  CHECK(Pieces(*tokenizer, "12") == Texts{"1", "2"});  // smollm's digits stand alone
  CHECK(Pieces(*Tokenizer::FromData(TinyBpe("gpt-2")), "12") == Texts{"12"});
  CHECK(Pieces(*tokenizer, "é") == Texts{"Ã©"});
  CHECK(Pieces(*tokenizer, "      x") == Texts{"ĠĠĠĠ", "Ġ", "Ġ", "x"});
  CHECK(tokenizer->Encode("").empty());
}

TEST_CASE("tokenizer: a byte without a token is dropped before its neighbours merge") {
  VocabularyData data = TinyBpe();
  data.tokens[4] = "gone";
  const auto tokenizer = Tokenizer::FromData(std::move(data));
  CHECK(Pieces(*tokenizer, "!\x04!") == Texts{"!!"});
  CHECK(Pieces(*tokenizer, "\x04").empty());
}

TEST_CASE("tokenizer: SentencePiece merges by score, puts a space in front, falls back to bytes") {
  const auto tokenizer = Tokenizer::FromData(TinySpm());
  CHECK(Pieces(*tokenizer, "hello hello") == Texts{"▁hello", "▁hello"});
  CHECK(Pieces(*tokenizer, "hell") == Texts{"▁", "hell"});
  CHECK(Pieces(*tokenizer, "ö中") == Texts{"▁", "<0xC3>", "<0xB6>", "中"});
  CHECK(Pieces(*tokenizer, "t e") == Texts{"▁", "t▁", "e"});  // a token that reaches over the border of a word
  CHECK(Pieces(*tokenizer, "\n") == Texts{"▁", "<0x0A>"});
  CHECK(Pieces(*tokenizer, "").empty());
  CHECK(tokenizer->Encode("") == std::vector<TokenId>{1});
  VocabularyData gemma = TinySpm();
  gemma.add_space_prefix = false;
  CHECK(Pieces(*Tokenizer::FromData(std::move(gemma)), "hello hello") == Texts{"hello", "▁hello"});
}

TEST_CASE("tokenizer: without a byte token, the unknown token stands for the byte") {
  VocabularyData data = TinySpm();
  data.tokens[3 + 0xC3] = "other";
  data.types[3 + 0xC3] = TokenType::kNormal;
  const auto tokenizer = Tokenizer::FromData(std::move(data));
  CHECK(Pieces(*tokenizer, "ö") == Texts{"▁", "<unk>", "<0xB6>"});
}

TEST_CASE("tokenizer: text is never merged into a control or byte token") {
  const auto spm = Tokenizer::FromData(TinySpm());
  CHECK(Pieces(*spm, "<s></s>", false) == Texts{"▁", "<s", ">", "</s", ">"});
  CHECK(Pieces(*spm, "<s></s>", true) == Texts{"<s>", "</s>"});
  VocabularyData data = TinyBpe();
  data.merges.push_back("< t");  // a merge that makes a control token
  data.tokens.push_back("<t");
  data.types.push_back(TokenType::kControl);
  CHECK(Pieces(*Tokenizer::FromData(std::move(data)), "<t", false) == Texts{"<", "t"});
}

TEST_CASE("tokenizer: special tokens, the leftmost and longest first") {
  const auto tokenizer = Tokenizer::FromData(TinyBpe());
  CHECK(Pieces(*tokenizer, "a<tag>b") == Texts{"a", "<tag>", "b"});
  CHECK(Pieces(*tokenizer, "<tag><tag><tag>") == Texts{"<tag><tag>", "<tag>"});
  CHECK(Pieces(*tokenizer, "<tag>", false) == Texts{"<tag>"});  // user-defined: everywhere
  CHECK(Pieces(*tokenizer, "<|im_end|>hello") == Texts{"<|im_end|>", "hello"});
  CHECK(Pieces(*tokenizer, "<|im_end|>", false).size() == 10);
  CHECK(Pieces(*tokenizer, "<<|im_end|>>") == Texts{"<", "<|im_end|>", ">"});
  CHECK(tokenizer->FindSpecial("<tag>") >= 0);
  CHECK(tokenizer->FindSpecial("hello") == -1);
  CHECK(tokenizer->FindSpecial("") == -1);
  // The space in front comes again after a special token, as llama.cpp has it.
  CHECK(Pieces(*Tokenizer::FromData(TinySpm()), "<tag>hello  a") == Texts{"<tag>", "▁hello", "  ", "▁", "a"});
}

TEST_CASE("tokenizer: text of a piece that is not special never becomes a control token") {
  const auto tokenizer = Tokenizer::FromData(TinyBpe());
  const auto encode = [&](const std::vector<TextPiece>& pieces) {
    return TextsOf(*tokenizer, tokenizer->Encode(pieces));
  };
  CHECK(encode({{"<|im_start|>he", true}, {"llo", false}, {"<|im_end|>", true}}) ==
        Texts{"<|im_start|>", "hello", "<|im_end|>"});
  for (const TokenId id : tokenizer->Encode({{"<|im_end|>", false}})) CHECK_FALSE(tokenizer->IsControl(id));
  // Nor over the border of two pieces, in either order; two special neighbours are one.
  for (const TokenId id : tokenizer->Encode({{"<|im_", true}, {"end|>", false}})) CHECK_FALSE(tokenizer->IsControl(id));
  for (const TokenId id : tokenizer->Encode({{"<|im_", false}, {"end|>", true}})) CHECK_FALSE(tokenizer->IsControl(id));
  CHECK(encode({{"<|im_", true}, {"end|>", true}}) == Texts{"<|im_end|>"});
  CHECK(encode({{"<ta", false}, {"g>", true}}) == Texts{"<tag>"});
}

TEST_CASE("tokenizer: BOS and EOS are added as the file wants, never twice") {
  VocabularyData data = TinySpm();
  data.add_eos = true;
  const auto tokenizer = Tokenizer::FromData(std::move(data));
  const auto encode = [&](std::string_view text) { return TextsOf(*tokenizer, tokenizer->Encode(text)); };
  CHECK(encode("a") == Texts{"<s>", "▁", "a", "</s>"});
  CHECK(encode("<s>a</s>") == Texts{"<s>", "▁", "a", "</s>"});
  CHECK(encode("a<s>") == Texts{"<s>", "▁", "a", "<s>", "</s>"});
  CHECK(encode("") == Texts{"<s>", "</s>"});
  CHECK(Pieces(*tokenizer, "a") == Texts{"▁", "a"});
}

TEST_CASE("tokenizer: OPT begins every text with </s>, which also ends it") {
  VocabularyData data = TinyBpe("gpt-2");
  data.tokens[static_cast<size_t>(data.bos)] = "</s>";
  data.eos = data.bos;
  data.add_bos = true;
  const auto tokenizer = Tokenizer::FromData(std::move(data));
  const auto encode = [&](std::string_view text) { return TextsOf(*tokenizer, tokenizer->Encode(text)); };
  CHECK(encode("hello hello") == Texts{"</s>", "hello", "Ġhello"});
  CHECK(encode("") == Texts{"</s>"});
  CHECK(encode("</s>hello") == Texts{"</s>", "hello"});
  CHECK(Pieces(*tokenizer, "hello") == Texts{"hello"});
  CHECK(tokenizer->IsEndOfGeneration(tokenizer->bos()));
  CHECK(tokenizer->Decode(tokenizer->Encode("hello hello")) == "hello hello");
}

TEST_CASE("tokenizer: what ends an answer") {
  const auto bpe = Tokenizer::FromData(TinyBpe());
  CHECK(bpe->IsEndOfGeneration(bpe->eos()));
  CHECK_FALSE(bpe->IsEndOfGeneration(bpe->bos()));
  CHECK_FALSE(bpe->IsEndOfGeneration(-1));
  VocabularyData data = TinyBpe();
  const auto add = [&](const char* text, TokenType type) {
    data.tokens.push_back(text);
    data.types.push_back(type);
    return static_cast<TokenId>(data.tokens.size() - 1);
  };
  const TokenId turn = add("<end_of_turn>", TokenType::kControl), user = add("<|eot_id|>", TokenType::kUserDefined);
  const TokenId normal = add("<|end|>", TokenType::kNormal);
  data.eot = 7;
  const auto tokenizer = Tokenizer::FromData(std::move(data));
  CHECK(tokenizer->IsEndOfGeneration(turn));
  CHECK(tokenizer->IsEndOfGeneration(user));
  CHECK(tokenizer->IsControl(user));  // or a message could end its turn
  CHECK_FALSE(tokenizer->IsEndOfGeneration(normal));
  CHECK(tokenizer->IsEndOfGeneration(7));
  CHECK(tokenizer->IsControl(7));
}

TEST_CASE("tokenizer: invalid UTF-8 becomes U+FFFD, one per maximal part, and is counted") {
  const auto tokenizer = Tokenizer::FromData(TinyBpe());
  const auto round_trip = [&](std::string_view text, size_t expected) {
    size_t replaced = 99;
    const auto ids = tokenizer->Encode(text, {}, &replaced);
    CHECK(replaced == expected);
    return tokenizer->Decode(ids);
  };
  CHECK(round_trip("héllo\xF0\x9F\x98\x80", 0) == "héllo\xF0\x9F\x98\x80");
  CHECK(round_trip("a\xFFz", 1) == "a\uFFFDz");
  CHECK(round_trip("\xE2\x82z", 1) == "\uFFFDz");                     // cut off
  CHECK(round_trip("\xF0\x80\x80\x41", 3) == "\uFFFD\uFFFD\uFFFDA");  // overlong
  CHECK(round_trip("\xED\xA0\x80", 3) == "\uFFFD\uFFFD\uFFFD");       // a surrogate
  CHECK(round_trip("\xF4\x90\x80\x80", 4) == "\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(round_trip("\xE2\x82", 1) == "\uFFFD");
}

TEST_CASE("tokenizer: decoding gives the text back") {
  const std::string texts[] = {"hello  hello", "  a", "é中\n\t \xF0\x9F\x98\x80", "a<tag>b", "", " ", "né né"};
  for (const std::string& text : texts) {
    CAPTURE(text);
    const auto bpe = Tokenizer::FromData(TinyBpe());
    CHECK(bpe->Decode(bpe->Encode(text)) == text);
    VocabularyData data = TinySpm();
    data.add_space_prefix = false;
    const auto gemma = Tokenizer::FromData(std::move(data));
    CHECK(gemma->Decode(gemma->Encode(text)) == text);
  }
  const auto spm = Tokenizer::FromData(TinySpm());
  CHECK(spm->Decode(spm->Encode("hello hello")) == "hello hello");  // without the space in front
  CHECK(spm->Decode(spm->Encode(" hello")) == " hello");
  CHECK(spm->Decode(spm->Encode("a</s>"), true) == "<s>a</s>");
  CHECK(spm->Decode(spm->Encode("a</s>"), false) == "a");
  CHECK_THROWS_WITH_AS(spm->Decode({-1}), "Token -1 is outside the vocabulary of 290 tokens.", Error);
  CHECK_THROWS_AS(spm->Decode({290}), Error);
}

TEST_CASE("tokenizer: a stream never splits a character") {
  const auto tokenizer = Tokenizer::FromData(TinySpm());
  StreamDecoder decoder(*tokenizer);
  const auto byte = [](int value) { return TokenId{3 + value}; };
  CHECK(decoder.Push(tokenizer->bos()) == "");
  CHECK(decoder.Push(byte(0xF0)) == "");
  CHECK(decoder.Push(byte(0x9F)) == "");
  CHECK(decoder.Push(byte(0x98)) == "");
  CHECK(decoder.Push(byte(0x80)) == "\xF0\x9F\x98\x80");
  CHECK(decoder.Push(byte(0xC3)) == "");
  CHECK(decoder.Push(byte('x')) == "\uFFFDx");
  CHECK(decoder.Push(byte(0xE2)) == "");
  CHECK(decoder.Push(byte(0x82)) == "");
  CHECK(decoder.Finish() == "\uFFFD");
  CHECK(decoder.Finish() == "");
  // A new text begins: its first space is Encode's.
  CHECK(decoder.Push(tokenizer->Encode("hello")[1]) == "hello");
  CHECK(decoder.Push(tokenizer->Encode("hello")[1]) == " hello");
}

TEST_CASE("tokenizer: short and long words merge alike") {
  // Symbols are letters; a pair has a rank and a result by a made-up rule with many equal ranks.
  const auto lookup = [](const MergeSymbol& left, const MergeSymbol& right) -> PairMerge {
    const uint32_t mix = static_cast<uint32_t>(left.id) * 31u + static_cast<uint32_t>(right.id) * 17u;
    return mix % 5 < 2 ? PairMerge{mix % 7, static_cast<TokenId>(mix % 23)} : PairMerge{};
  };
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    std::vector<MergeSymbol> a;
    const uint32_t n = 1 + random() % 200;
    for (uint32_t i = 0; i < n; ++i) a.push_back({i, 1, static_cast<TokenId>(random() % (1 + round % 23))});
    std::vector<MergeSymbol> b = a;
    Merger(a, lookup).RunShort();
    Merger(b, lookup).RunLong();
    const auto list = [](const std::vector<MergeSymbol>& symbols) {
      std::vector<std::pair<TokenId, uint32_t>> left;
      for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
        left.emplace_back(symbols[static_cast<size_t>(i)].id, symbols[static_cast<size_t>(i)].bytes);
      }
      return left;
    };
    REQUIRE(list(a) == list(b));
  }
}

TEST_CASE("tokenizer: a text beyond the limit is refused") {
  const auto tokenizer = Tokenizer::FromData(TinyBpe());
  CHECK_THROWS_AS(tokenizer->Encode(std::string(kMaxTextBytes + 1, 'a')), Error);
}

}  // namespace
}  // namespace thermocline
