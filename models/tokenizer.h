// Text <-> token ids, from the vocabulary a GGUF file carries.
//
// Two families: byte-level BPE ("gpt2", with a pre-tokenizer chosen by tokenizer.ggml.pre) and SentencePiece
// BPE ("llama", merges by score, byte fallback). Both take time O(n log n) in the text, whatever it holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline {

class GgufFile;
struct VocabularyData;
class Vocabulary;
using TokenId = int32_t;

// A piece of prompt. Control tokens written in `text` are recognized only where `special` is true: text of a message
// never becomes one. User-defined tokens are recognized everywhere.
struct TextPiece {
  std::string text;
  bool special = false;
};

struct EncodeOptions {
  bool add_bos_eos = true;    // as the model's metadata wants; neither is ever doubled
  bool parse_special = true;  // for the plain-text overload: control tokens written in the text are recognized
};

class Tokenizer {
 public:
  // Throws Error naming file and key for a vocabulary that is missing, inconsistent or of an unknown kind.
  static std::unique_ptr<Tokenizer> FromGguf(const GgufFile& file);
  static std::unique_ptr<Tokenizer> FromData(VocabularyData data);
  virtual ~Tokenizer();

  // Invalid UTF-8 becomes U+FFFD, one per maximal invalid part; `replaced`, if given, counts them. Neighbouring pieces
  // are one text: a token may reach over their border, unless it is a control token that would take in text of a
  // piece that is not special. A byte for which a byte-level vocabulary has no token is dropped, as Hugging Face
  // `tokenizers` does. Throws Error for a text beyond kMaxTextBytes.
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options = {},
                              size_t* replaced = nullptr) const;
  std::vector<TokenId> Encode(const std::vector<TextPiece>& pieces, bool add_bos_eos = true,
                              size_t* replaced = nullptr) const;

  // The bytes of one token; may be a part of a UTF-8 character. Control tokens give nothing unless `show_special`.
  // Throws Error for an id outside the vocabulary.
  std::string Bytes(TokenId id, bool show_special = false) const;
  // As one text, valid UTF-8, without the space that Encode put in front. Throws Error for an id outside the
  // vocabulary.
  std::string Decode(const std::vector<TokenId>& ids, bool show_special = false) const;

  int n_vocab() const;
  TokenId bos() const;   // -1: none
  TokenId eos() const;   // -1: none
  bool add_bos() const;  // the model's metadata wants BOS in front
  bool add_eos() const;
  bool add_space_prefix() const;             // a space is put before the text and after each control token
  bool IsEndOfGeneration(TokenId id) const;  // eos, eot, <|im_end|>, <end_of_turn>, ...
  bool IsControl(TokenId id) const;
  bool IsUserDefined(TokenId id) const;
  std::string_view TokenText(TokenId id) const;  // as the file writes it
  // The id of the control or user-defined token written exactly so; -1: none.
  TokenId FindSpecial(std::string_view text) const;

 protected:
  explicit Tokenizer(std::unique_ptr<const Vocabulary> vocabulary);
  const Vocabulary& vocabulary() const { return *vocabulary_; }

 private:
  // Appends the tokens of valid UTF-8 without special tokens. `starts` says that it begins the text or follows a
  // special token.
  virtual void EncodeRun(std::string_view run, bool starts, std::vector<TokenId>& out) const = 0;
  // The bytes of a token that is neither control, user-defined nor a byte token, from its text in the file.
  virtual std::string PlainBytes(std::string_view text) const = 0;

  std::unique_ptr<const Vocabulary> vocabulary_;
};

// Turns a stream of tokens into text without ever splitting a UTF-8 character. The tokenizer must outlive it.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool show_special = false);
  std::string Push(TokenId id);  // the characters completed by this token
  std::string Finish();          // what was left incomplete, as U+FFFD; the next Push begins a new text

 private:
  const Tokenizer* tokenizer_;
  bool show_special_;
  bool at_start_ = true;  // no text yet: a leading space is Encode's
  std::string pending_;   // the beginning of a character
};

}  // namespace thermocline
