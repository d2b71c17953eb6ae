#include "models/tokenizer_vocabulary.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <string>

#include "models/advice.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/hash.h"
#include "models/limits.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

// Texts of tokens that end an answer, and of those that a code model writes where one file stops (the list is
// llama.cpp's). They end it only where the vocabulary holds them as special tokens.
constexpr std::string_view kEndTexts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\xEF\xBD\x9C"
    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
};

uint64_t HashOf(std::string_view text) {
  Hash hash;
  hash.Add({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  return hash.value();
}

// <0xNN> -> NN; -1: no byte token.
int ByteOf(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = digit(text[3]), low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::vector<TokenType> ReadTypes(const GgufFile& file) {
  constexpr std::string_view kKey = "tokenizer.ggml.token_type";
  const GgufValue* value = file.Find(kKey);
  if (value == nullptr) return {};
  const auto* array = std::get_if<GgufArray>(value);
  const bool is_unsigned = array != nullptr && array->kind == GgufArray::Kind::kUnsigned;
  if (!is_unsigned) array = file.FindArray(kKey, GgufArray::Kind::kSigned);
  std::vector<TokenType> types(array->size());
  for (size_t i = 0; i < types.size(); ++i) {
    const uint64_t type = is_unsigned ? array->unsigneds[i] : static_cast<uint64_t>(array->signeds[i]);
    if (type > 6) {
      throw Error("{}: {} holds {} at index {}; known types are 0 to 6. {}", file.path(), Quoted(kKey),
                  static_cast<int64_t>(type), i, kDamagedOrUnsupported);
    }
    types[i] = type == 0 ? TokenType::kNormal : static_cast<TokenType>(type);  // 0: undefined
  }
  return types;
}

std::vector<std::string> ReadStrings(const GgufFile& file, std::string_view key) {
  const GgufArray* array = file.FindArray(key, GgufArray::Kind::kString);
  if (array == nullptr) return {};
  return {array->strings.begin(), array->strings.end()};
}

}  // namespace

VocabularyData ReadVocabulary(const GgufFile& file) {
  VocabularyData data;
  data.where = file.path();
  data.model = file.GetString("tokenizer.ggml.model");
  data.pre = file.GetString("tokenizer.ggml.pre", "");
  data.tokens = ReadStrings(file, "tokenizer.ggml.tokens");
  data.types = ReadTypes(file);
  if (const auto* scores = file.FindArray("tokenizer.ggml.scores", GgufArray::Kind::kFloat)) {
    data.scores.assign(scores->floats.begin(), scores->floats.end());
  }
  data.merges = ReadStrings(file, "tokenizer.ggml.merges");
  const auto id = [&](std::string_view key) {
    const auto max = std::max<int64_t>(0, std::ssize(data.tokens) - 1);
    return static_cast<TokenId>(file.Find(key) == nullptr ? -1 : file.GetInt(key, 0, max));
  };
  if (data.tokens.empty()) return data;  // refused by Vocabulary
  data.bos = id("tokenizer.ggml.bos_token_id");
  data.eos = id("tokenizer.ggml.eos_token_id");
  data.eot = id("tokenizer.ggml.eot_token_id");
  data.eom = id("tokenizer.ggml.eom_token_id");
  data.unknown = id("tokenizer.ggml.unknown_token_id");
  // What a file leaves open is as llama.cpp has it.
  const bool sentence_piece = data.model == "llama";
  data.add_bos = file.GetBool("tokenizer.ggml.add_bos_token", sentence_piece && data.bos >= 0);
  data.add_eos = file.GetBool("tokenizer.ggml.add_eos_token", false);
  data.add_space_prefix = file.GetBool("tokenizer.ggml.add_space_prefix", sentence_piece);
  return data;
}

void TokenIndex::Reserve(size_t n) { slots_.assign(std::bit_ceil(2 * n + 2), {}); }

size_t TokenIndex::SlotOf(std::string_view text, uint32_t tag, size_t start,
                          std::span<const std::string> tokens) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = start & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].tag != tag || tokens[static_cast<size_t>(slots_[slot].id)] != text)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

bool TokenIndex::Insert(std::string_view text, TokenId id, std::span<const std::string> tokens) {
  const uint64_t hash = HashOf(text);
  const auto tag = static_cast<uint32_t>(hash >> 32);
  Slot& slot = slots_[SlotOf(text, tag, hash, tokens)];
  if (slot.id >= 0) return false;
  slot = {tag, id};
  return true;
}

TokenId TokenIndex::Find(std::string_view text, std::span<const std::string> tokens) const {
  const uint64_t hash = HashOf(text);
  return slots_[SlotOf(text, static_cast<uint32_t>(hash >> 32), hash, tokens)].id;
}

void SpecialMatcher::Add(std::string_view text, TokenId id, bool control) {
  first_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char c : text) {
    const std::pair<uint8_t, uint32_t> edge{static_cast<uint8_t>(c), static_cast<uint32_t>(nodes_.size())};
    auto& next = nodes_[node].next;
    auto at = std::lower_bound(next.begin(), next.end(), std::pair<uint8_t, uint32_t>{edge.first, 0});
    if (at == next.end() || at->first != edge.first) {
      next.insert(at, edge);
      node = edge.second;
      nodes_.emplace_back();
    } else {
      node = at->second;
    }
  }
  nodes_[node].id = id;
  nodes_[node].control = control;
}

SpecialMatcher::Match SpecialMatcher::Longest(std::string_view text, size_t pos, size_t control_end) const {
  Match longest;
  if (!first_[static_cast<uint8_t>(text[pos])]) return longest;
  uint32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto& next = nodes_[node].next;
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto at = std::lower_bound(next.begin(), next.end(), std::pair<uint8_t, uint32_t>{byte, 0});
    if (at == next.end() || at->first != byte) break;
    node = at->second;
    if (nodes_[node].id >= 0 && (!nodes_[node].control || i < control_end)) longest = {nodes_[node].id, i + 1 - pos};
  }
  return longest;
}

Vocabulary::Vocabulary(VocabularyData data) : data_(std::move(data)) {
  CheckArrays();
  MarkControl();
  IndexTokens();
}

void Vocabulary::Fail(std::string_view key, std::string_view what) const {
  throw Error("{}: 'tokenizer.ggml.{}' {}", data_.where, key, what);
}

void Vocabulary::CheckArrays() {
  const size_t n = data_.tokens.size();
  if (n == 0) Fail("tokens", fmt::format("is missing or empty: the file has no vocabulary. {}", kConvertAgain));
  if (data_.types.empty()) data_.types.assign(n, TokenType::kNormal);
  if (data_.types.size() != n) {
    Fail("token_type", fmt::format("has {} elements for {} tokens. {}", data_.types.size(), n, kDownloadAgain));
  }
  if (!data_.scores.empty() && data_.scores.size() != n) {
    Fail("scores", fmt::format("has {} elements for {} tokens. {}", data_.scores.size(), n, kDownloadAgain));
  }
  const std::pair<std::string_view, TokenId> ids[] = {{"bos_token_id", data_.bos},
                                                      {"eos_token_id", data_.eos},
                                                      {"eot_token_id", data_.eot},
                                                      {"eom_token_id", data_.eom},
                                                      {"unknown_token_id", data_.unknown}};
  for (const auto& [key, id] : ids) {
    if (id < -1 || id >= static_cast<int64_t>(n)) {
      Fail(key, fmt::format("is {}, outside the vocabulary of {} tokens. {}", id, n, kDownloadAgain));
    }
  }
  if (data_.add_bos && data_.bos < 0)
    Fail("add_bos_token", fmt::format("wants a BOS token, but there is no bos_token_id. {}", kConvertAgain));
  if (data_.add_eos && data_.eos < 0)
    Fail("add_eos_token", fmt::format("wants an EOS token, but there is no eos_token_id. {}", kConvertAgain));
}

// A token that begins or ends something is a control token whatever the file calls it: text of a message must not
// become one.
void Vocabulary::MarkControl() {
  for (const TokenId id : {data_.eos, data_.eot, data_.eom}) {
    if (id >= 0) end_of_generation_.push_back(id);
  }
  for (size_t i = 0; i < data_.tokens.size(); ++i) {
    const TokenType type = data_.types[i];
    if (type != TokenType::kControl && type != TokenType::kUserDefined) continue;
    if (std::ranges::find(kEndTexts, data_.tokens[i]) != std::end(kEndTexts)) {
      end_of_generation_.push_back(static_cast<TokenId>(i));
    }
  }
  std::ranges::sort(end_of_generation_);
  for (const TokenId id : end_of_generation_) data_.types[static_cast<size_t>(id)] = TokenType::kControl;
  if (data_.bos >= 0) data_.types[static_cast<size_t>(data_.bos)] = TokenType::kControl;
}

void Vocabulary::IndexTokens() {
  byte_tokens_.fill(-1);
  index_.Reserve(data_.tokens.size());
  for (TokenId id = 0; id < size(); ++id) {
    const std::string& token = text(id);
    if (token.size() > kMaxTokenBytes) {
      Fail("tokens", fmt::format("holds a token of {} bytes at index {}; at most {} are supported. {}", token.size(),
                                 id, kMaxTokenBytes, kDamagedOrUnsupported));
    }
    if (token.empty()) continue;  // no text becomes it, and it becomes no text
    if (!index_.Insert(token, id, data_.tokens)) {
      Fail("tokens",
           fmt::format("holds {} at index {} and again at {}. {}", Quoted(token), Find(token), id, kConvertAgain));
    }
    max_token_bytes_ = std::max(max_token_bytes_, token.size());
    if (type(id) == TokenType::kByte) {
      const int byte = ByteOf(token);
      if (byte < 0)
        Fail("tokens",
             fmt::format("holds {} at index {} as a byte token, not <0xNN>. {}", Quoted(token), id, kConvertAgain));
      byte_tokens_[static_cast<size_t>(byte)] = id;
    } else if (IsControl(id) || type(id) == TokenType::kUserDefined) {
      specials_.Add(token, id, IsControl(id));
    }
  }
}

bool Vocabulary::IsEndOfGeneration(TokenId id) const { return std::ranges::binary_search(end_of_generation_, id); }

uint8_t Vocabulary::ByteValue(TokenId id) const { return static_cast<uint8_t>(ByteOf(text(id))); }

TokenId Vocabulary::FindPlain(std::string_view text) const {
  const TokenId id = Find(text);
  return id >= 0 && IsPlain(id) ? id : -1;
}

}  // namespace thermocline
