// Text <-> token ids, from the vocabulary a GGUF file carries.
//
// Two families: byte-level BPE ("gpt2", with a pre-tokenizer regex chosen by tokenizer.ggml.pre) and SentencePiece
// BPE ("llama", merges by score, byte fallback). Both take time O(n log n) in the text, whatever it holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline {

class GgufFile;
using TokenId = int32_t;

// A piece of prompt. Control tokens written in `text` are recognized only where `special` is true: text of a message
// never becomes one.
struct TextPiece {
  std::string text;
  bool special = false;
};

struct EncodeOptions {
  bool add_bos_eos = true;     // as the model's metadata wants; BOS is never doubled
  bool parse_special = true;   // for the plain-text overload: control tokens written in the text are recognized
};

class Tokenizer {
 public:
  // Throws Error naming file and key for a vocabulary that is missing, inconsistent or of an unknown kind.
  static std::unique_ptr<Tokenizer> FromGguf(const GgufFile& file);
  virtual ~Tokenizer() = default;

  // Invalid UTF-8 becomes U+FFFD, one per maximal invalid part; `replaced`, if given, counts them.
  std::vector<TokenId> Encode(std::string_view text, const EncodeOptions& options = {}, size_t* replaced = nullptr) const;
  std::vector<TokenId> Encode(const std::vector<TextPiece>& pieces, bool add_bos_eos = true,
                              size_t* replaced = nullptr) const;

  // The bytes of one token; may be a part of a UTF-8 character. Control tokens give nothing unless `show_special`.
  virtual std::string Bytes(TokenId id, bool show_special = false) const = 0;
  // As one text. Throws Error for an id outside the vocabulary.
  std::string Decode(const std::vector<TokenId>& ids, bool show_special = false) const;

  int n_vocab() const;
  TokenId bos() const;              // -1: none
  TokenId eos() const;              // -1: none
  bool add_bos() const;             // the model's metadata wants BOS in front
  bool add_eos() const;
  bool IsEndOfGeneration(TokenId id) const;   // eos, eot, <|im_end|>, <end_of_turn>, ...
  bool IsControl(TokenId id) const;
  std::string_view TokenText(TokenId id) const;   // as the file writes it
  // The id of the control or user-defined token written exactly so; -1: none.
  TokenId FindSpecial(std::string_view text) const;
};

// Turns a stream of tokens into text without ever splitting a UTF-8 character.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool show_special = false);
  std::string Push(TokenId id);   // the characters completed by this token
  std::string Finish();           // what was left incomplete, as U+FFFD
};

}  // namespace thermocline
