// SentencePiece BPE: characters of the whole text, spaces written as U+2581, are merged by the score of what they
// become. A character without a token is written as its bytes.
#include <bit>
#include <string>

#include "models/error.h"
#include "models/tokenizer_merge.h"
#include "models/tokenizer_vocabulary.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";   // U+2581

// Maps a score to a rank that falls as the score grows: the bits of a float, read as sign and magnitude, are in order.
uint32_t RankOf(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);   // -0 becomes 0
  const uint32_t ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

class SentencePiece final : public Tokenizer {
 public:
  explicit SentencePiece(std::unique_ptr<const Vocabulary> owned) : Tokenizer(std::move(owned)) {}

 private:
  void EncodeRun(std::string_view run, bool starts, std::vector<TokenId>& out) const override {
    const Vocabulary& vocab = vocabulary();
    std::string text;
    text.reserve(run.size() + run.size() / 4);
    if (starts && add_space_prefix()) text += kSpaceMark;
    for (const char c : run) c == ' ' ? text.append(kSpaceMark) : text.append(1, c);

    std::vector<MergeSymbol> symbols;
    for (size_t pos = 0; pos < text.size();) {
      const auto bytes = static_cast<uint32_t>(DecodeUtf8(text, pos).bytes);
      symbols.push_back({static_cast<uint32_t>(pos), bytes, -1});
      pos += bytes;
    }
    if (symbols.empty()) return;
    // By text, not by ids: a piece may hold characters that are no tokens by themselves.
    const auto lookup = [&](const MergeSymbol& left, const MergeSymbol& right) -> PairMerge {
      const size_t bytes = size_t{left.bytes} + right.bytes;
      if (bytes > vocab.max_token_bytes()) return {};
      const TokenId id = vocab.FindPlain(std::string_view(text).substr(left.begin, bytes));
      if (id < 0) return {};
      return {RankOf(vocab.data().scores[static_cast<size_t>(id)]), id};
    };
    Merger(symbols, lookup).Run();
    for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
      const MergeSymbol& symbol = symbols[static_cast<size_t>(i)];
      Append(std::string_view(text).substr(symbol.begin, symbol.bytes), symbol.id, out);
    }
  }

  void Append(std::string_view symbol, TokenId id, std::vector<TokenId>& out) const {
    if (id < 0) id = vocabulary().FindPlain(symbol);
    if (id >= 0) {
      out.push_back(id);
      return;
    }
    for (const char c : symbol) {
      const TokenId byte = vocabulary().ByteToken(static_cast<uint8_t>(c));
      out.push_back(byte >= 0 ? byte : vocabulary().data().unknown);
    }
  }

  std::string PlainBytes(std::string_view text) const override {
    std::string bytes;
    for (size_t pos = 0; pos < text.size();) {
      const bool is_space = text.substr(pos).starts_with(kSpaceMark);
      bytes += is_space ? ' ' : text[pos];
      pos += is_space ? kSpaceMark.size() : 1;
    }
    return bytes;
  }
};

}  // namespace

std::unique_ptr<Tokenizer> MakeSentencePiece(std::unique_ptr<const Vocabulary> vocabulary) {
  const VocabularyData& data = vocabulary->data();
  if (data.scores.empty()) vocabulary->Fail("scores", "is missing; a SentencePiece vocabulary needs it.");
  for (int byte = 0; byte < 256 && data.unknown < 0; ++byte) {
    if (vocabulary->ByteToken(static_cast<uint8_t>(byte)) >= 0) continue;
    vocabulary->Fail("tokens", fmt::format("has no byte token <0x{:02X}> and tokenizer.ggml.unknown_token_id is missing: "
                                           "not every text can be written.", byte));
  }
  return std::make_unique<SentencePiece>(std::move(vocabulary));
}

}  // namespace thermocline
