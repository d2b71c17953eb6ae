// Two vocabularies small enough to read, one of each family.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "models/tokenizer_vocabulary.h"
#include "models/unicode.h"

namespace thermocline {

// A byte as GPT-2 vocabularies write it.
inline std::string Gpt2Char(int byte) {
  int hidden = 0;  // bytes before this one that are not written as themselves
  const auto visible = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
  for (int b = 0; b < byte; ++b) hidden += visible(b) ? 0 : 1;
  std::string text;
  AppendUtf8(static_cast<char32_t>(visible(byte) ? byte : 256 + hidden), text);
  return text;
}

// Ids 0 to 255 are the bytes. Then come the merges' results, and the special tokens by name.
inline VocabularyData TinyBpe(std::string pre = "smollm") {
  VocabularyData data;
  data.where = "tiny";
  data.model = "gpt2";
  data.pre = std::move(pre);
  for (int byte = 0; byte < 256; ++byte) data.tokens.push_back(Gpt2Char(byte));
  data.merges = {"h e", "l l", "he ll", "hell o", "Ġ hello", "Ġ Ġ", "ĠĠ ĠĠ", "1 2", "a a", "aa aa", "Ã ©", "! !"};
  for (const std::string& merge : data.merges) {
    std::string token = merge;
    token.erase(token.find(' '), 1);
    data.tokens.push_back(token);
  }
  data.types.assign(data.tokens.size(), TokenType::kNormal);
  const auto special = [&](const char* text, TokenType type) {
    data.tokens.push_back(text);
    data.types.push_back(type);
    return static_cast<TokenId>(data.tokens.size() - 1);
  };
  data.bos = special("<|im_start|>", TokenType::kControl);
  data.eos = special("<|im_end|>", TokenType::kControl);
  special("<tag>", TokenType::kUserDefined);
  special("<tag><tag>", TokenType::kUserDefined);
  return data;
}

inline VocabularyData TinySpm() {
  VocabularyData data;
  data.where = "tiny";
  data.model = "llama";
  const auto add = [&](std::string text, float score, TokenType type = TokenType::kNormal) {
    data.tokens.push_back(std::move(text));
    data.scores.push_back(score);
    data.types.push_back(type);
  };
  add("<unk>", 0, TokenType::kUnknown);
  add("<s>", 0, TokenType::kControl);
  add("</s>", 0, TokenType::kControl);
  for (int byte = 0; byte < 256; ++byte) add(fmt::format("<0x{:02X}>", byte), 0, TokenType::kByte);
  float score = 0;
  for (const char* piece :
       {"▁▁", "▁▁▁▁", "he", "ll", "hell", "hello", "▁hello", "aa", "aaaa", "<s", "/s", "</s", "t▁", "né"}) {
    add(piece, score -= 1);
  }
  for (const char* piece : {"▁", "h", "e", "l", "o", "a", "<", ">", "s", "/", "t", "n", "é", "中", "1"})
    add(piece, score -= 1);
  add("<tag>", -1000, TokenType::kUserDefined);
  add("  ", -1000, TokenType::kUserDefined);
  data.bos = 1;
  data.eos = 2;
  data.unknown = 0;
  data.add_bos = true;
  data.add_space_prefix = true;
  return data;
}

// The texts of tokens, for checks that read well.
inline std::vector<std::string> TextsOf(const Tokenizer& tokenizer, const std::vector<TokenId>& ids) {
  std::vector<std::string> texts;
  for (const TokenId id : ids) texts.emplace_back(tokenizer.TokenText(id));
  return texts;
}

}  // namespace thermocline
