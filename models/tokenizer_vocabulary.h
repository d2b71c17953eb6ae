// The vocabulary behind a tokenizer: tokens, their types, how to find them by text, and which of them are special.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/tokenizer.h"

namespace thermocline {

// Values are those of tokenizer.ggml.token_type.
enum class TokenType : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// What a file says about its tokenizer. FromGguf reads it from there, tests write it by hand.
struct VocabularyData {
  std::string where;  // for errors: "model.gguf"
  std::string model;  // tokenizer.ggml.model: "gpt2", "llama"
  std::string pre;    // tokenizer.ggml.pre; "": absent
  std::vector<std::string> tokens;
  std::vector<TokenType> types;                                  // (n_tokens), or empty: all normal
  std::vector<float> scores;                                     // (n_tokens), "llama" only
  std::vector<std::string> merges;                               // "left right", "gpt2" only
  TokenId bos = -1, eos = -1, eot = -1, eom = -1, unknown = -1;  // -1: absent
  bool add_bos = false, add_eos = false, add_space_prefix = false;
};

VocabularyData ReadVocabulary(const GgufFile& file);

// Strings -> ids by open addressing, with a tag beside each id so that a miss costs one cache line. The strings belong
// to the caller and must stay.
class TokenIndex {
 public:
  void Reserve(size_t n);
  // False when `text` is already there.
  bool Insert(std::string_view text, TokenId id, std::span<const std::string> tokens);
  TokenId Find(std::string_view text, std::span<const std::string> tokens) const;  // -1: none

 private:
  struct Slot {
    uint32_t tag = 0;
    TokenId id = -1;  // -1: free
  };
  size_t SlotOf(std::string_view text, uint32_t tag, size_t start, std::span<const std::string> tokens) const;
  std::vector<Slot> slots_;  // a power of two, at most half full
};

// Finds special tokens in a text: a trie over bytes.
class SpecialMatcher {
 public:
  struct Match {
    TokenId id = -1;  // -1: none
    size_t bytes = 0;
  };
  void Add(std::string_view text, TokenId id, bool control);
  // The longest special token that begins at text[pos]; a control token only if it ends at or before `control_end`.
  Match Longest(std::string_view text, size_t pos, size_t control_end) const;

 private:
  struct Node {
    TokenId id = -1;
    bool control = false;
    std::vector<std::pair<uint8_t, uint32_t>> next;  // sorted by byte
  };
  std::array<bool, 256> first_{};  // bytes that begin some special token
  std::vector<Node> nodes_{1};
};

class Vocabulary {
 public:
  // Throws Error naming the key that does not hold.
  explicit Vocabulary(VocabularyData data);

  const VocabularyData& data() const { return data_; }
  int size() const { return static_cast<int>(data_.tokens.size()); }
  const std::string& text(TokenId id) const { return data_.tokens[static_cast<size_t>(id)]; }
  TokenType type(TokenId id) const { return data_.types[static_cast<size_t>(id)]; }
  bool IsControl(TokenId id) const { return type(id) == TokenType::kControl || type(id) == TokenType::kUnknown; }
  // Text may become this token: control and byte tokens are never written out by merges.
  bool IsPlain(TokenId id) const { return !IsControl(id) && type(id) != TokenType::kByte; }
  bool IsEndOfGeneration(TokenId id) const;

  TokenId Find(std::string_view text) const { return index_.Find(text, data_.tokens); }  // -1: none
  TokenId FindPlain(std::string_view text) const;                                        // -1: none
  TokenId ByteToken(uint8_t byte) const { return byte_tokens_[byte]; }                   // <0xNN>; -1: none
  uint8_t ByteValue(TokenId id) const;                                                   // of a byte token
  const SpecialMatcher& specials() const { return specials_; }
  size_t max_token_bytes() const { return max_token_bytes_; }

  [[noreturn]] void Fail(std::string_view key, std::string_view what) const;

 private:
  void CheckArrays();
  void MarkControl();
  void IndexTokens();

  VocabularyData data_;
  TokenIndex index_;
  SpecialMatcher specials_;
  std::array<TokenId, 256> byte_tokens_{};
  std::vector<TokenId> end_of_generation_;  // sorted
  size_t max_token_bytes_ = 0;
};

// The two families. Each throws Error for what its data lacks.
std::unique_ptr<Tokenizer> MakeByteBpe(std::unique_ptr<const Vocabulary> vocabulary);
std::unique_ptr<Tokenizer> MakeSentencePiece(std::unique_ptr<const Vocabulary> vocabulary);

}  // namespace thermocline
