// The first byte chooses: tokenize the rest with a tiny vocabulary of each family, or parse and render it as a
// template.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "models/chat_template.h"
#include "models/error.h"
#include "models/tokenizer.h"
#include "models/unicode.h"
#include "tests/models/tiny_vocabulary.h"

namespace thermocline {
namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

// SentencePiece writes a space as U+2581, so that U+2581 itself comes back as a space.
std::string SpacesForMarks(std::string text) {
  constexpr std::string_view kMark = "\xE2\x96\x81";
  for (size_t at = text.find(kMark); at != std::string::npos; at = text.find(kMark, at))
    text.replace(at, kMark.size(), " ");
  return text;
}

void FuzzTokenizer(const Tokenizer& tokenizer, std::string_view text, bool marks_spaces) {
  std::string valid;
  const size_t invalid = AppendValidUtf8(text, valid);
  size_t replaced = 0;
  const std::vector<TokenId> ids = tokenizer.Encode(text, {.add_bos_eos = false}, &replaced);
  Require(replaced == invalid);
  for (const TokenId id : ids) Require(id >= 0 && id < tokenizer.n_vocab());
  // With special tokens shown, the text comes back, but for the space put in front of the text after each of them.
  if (!tokenizer.add_space_prefix()) {
    Require(tokenizer.Decode(ids, true) == (marks_spaces ? SpacesForMarks(valid) : valid));
  }
  // The text of a message holds no control token, wherever it is cut.
  const size_t half = text.size() / 2;
  const std::vector<TextPiece> pieces = {{std::string(text.substr(0, half)), false},
                                         {std::string(text.substr(half)), false}};
  for (const TokenId id : tokenizer.Encode(pieces, false)) Require(!tokenizer.IsControl(id));
  // Any ids make valid text, and a stream makes the same.
  std::vector<TokenId> any;
  for (const char c : text) any.push_back(static_cast<uint8_t>(c) * 7 % tokenizer.n_vocab());
  StreamDecoder decoder(tokenizer, true);
  std::string streamed;
  for (const TokenId id : any) {
    const std::string part = decoder.Push(id);
    std::string copy;
    Require(AppendValidUtf8(part, copy) == 0);
    streamed += part;
  }
  Require(streamed + decoder.Finish() == tokenizer.Decode(any, true));
}

void FuzzTemplate(std::string_view source) {
  try {
    const auto parsed = ChatTemplate::Parse(source, "<s>", "</s>", "fuzz");
    const std::vector<Message> messages = {
        {"system", "\x01 be brief "}, {"user", "\x01hello"}, {"assistant", "\x01y\xFF"}};
    for (const TextPiece& piece : parsed.Render(messages, true)) {
      std::string copy;
      Require(AppendValidUtf8(piece.text, copy) == 0);
      // A template cannot write \x01 but by an escape, so what holds it came from a message.
      const bool escapes = source.find('\\') != std::string_view::npos || source.find('\x01') != std::string_view::npos;
      if (piece.special && !escapes) Require(piece.text.find('\x01') == std::string::npos);
    }
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace thermocline

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace thermocline;
  if (size == 0) return 0;
  static const auto kSmollm = Tokenizer::FromData(TinyBpe());
  static const auto kDefault = Tokenizer::FromData(TinyBpe("default"));
  static const auto kLlama = Tokenizer::FromData(TinySpm());
  static const auto kGemma = [] {
    VocabularyData data = TinySpm();
    data.add_space_prefix = false;
    return Tokenizer::FromData(std::move(data));
  }();
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 8) {
    case 0: FuzzTokenizer(*kSmollm, rest, false); break;
    case 1: FuzzTokenizer(*kDefault, rest, false); break;
    case 2: FuzzTokenizer(*kLlama, rest, true); break;
    case 3: FuzzTokenizer(*kGemma, rest, true); break;
    default: FuzzTemplate(rest);
  }
  return 0;
}
