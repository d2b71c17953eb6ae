// SentencePiece BPE: characters of the whole text, spaces written as U+2581, are merged by the score of what they
// become. A character without a token is written as its bytes.
#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "models/advice.h"
#include "models/error.h"
#include "models/tokenizer_merge.h"
#include "models/tokenizer_vocabulary.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

// Maps a score to a rank that falls as the score grows: the bits of a float, read as sign and magnitude, are in order.
uint32_t RankOf(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 becomes 0
  const uint32_t ascending = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

// What pairs of tokens became lately: a look-up by text costs a cache miss or two, and texts repeat themselves. (10 MB
// of random letters in one word: 6.2 s without, 4.0 s with.)
class PairCache {
 public:
  // A short text is done before a cache is filled.
  explicit PairCache(size_t n_symbols) : entries_(n_symbols < 1024 ? 0 : kEntries) {}

  template <typename Find>
  PairMerge Get(const MergeSymbol& left, const MergeSymbol& right, const Find& find) {
    if (entries_.empty() || left.id < 0 || right.id < 0) return find(left, right);
    const uint64_t key = static_cast<uint64_t>(left.id) << 32 | static_cast<uint32_t>(right.id);
    Entry& entry = entries_[(key ^ key >> 25) * 0x9E3779B97F4A7C15u >> (64 - kBits)];
    if (entry.key != key) entry = {key, find(left, right)};
    return entry.merge;
  }

 private:
  static constexpr int kBits = 14;  // 256 KiB: stays in L2
  static constexpr size_t kEntries = size_t{1} << kBits;
  struct Entry {
    uint64_t key = UINT64_MAX;  // ids are not negative
    PairMerge merge;
  };
  std::vector<Entry> entries_;
};

class SentencePiece final : public Tokenizer {
 public:
  explicit SentencePiece(std::unique_ptr<const Vocabulary> owned) : Tokenizer(std::move(owned)) {
    for (TokenId id = 0; id < vocabulary().size(); ++id) {
      if (!vocabulary().IsPlain(id)) continue;
      const std::string& text = vocabulary().text(id);
      for (size_t mark = text.find(kSpaceMark, 1); mark < text.size(); mark = text.find(kSpaceMark, mark + 1)) {
        joins_space_[static_cast<uint8_t>(text[mark - 1])] = true;
      }
    }
  }

 private:
  void EncodeRun(std::string_view run, bool starts, std::vector<TokenId>& out) const override {
    std::string text;
    text.reserve(run.size() + run.size() / 4);
    if (starts && add_space_prefix()) text += kSpaceMark;
    for (const char c : run) c == ' ' ? text.append(kSpaceMark) : text.append(1, c);

    std::vector<MergeSymbol> symbols;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = WordEnd(text, begin);
      EncodeWord(std::string_view(text).substr(begin, end - begin), symbols, out);
      begin = end;
    }
  }

  // No token reaches over the end of a word, so words can be merged one by one, and short ones fit into the cache.
  size_t WordEnd(std::string_view text, size_t begin) const {
    size_t mark = begin;
    do {
      mark = text.find(kSpaceMark, mark + 1);
    } while (mark < text.size() && joins_space_[static_cast<uint8_t>(text[mark - 1])]);
    return std::min(mark, text.size());
  }

  void EncodeWord(std::string_view word, std::vector<MergeSymbol>& symbols, std::vector<TokenId>& out) const {
    const Vocabulary& vocab = vocabulary();
    symbols.clear();
    for (size_t pos = 0; pos < word.size();) {
      const auto bytes = static_cast<uint32_t>(DecodeUtf8(word, pos).bytes);
      symbols.push_back({static_cast<uint32_t>(pos), bytes, vocab.FindPlain(word.substr(pos, bytes))});
      pos += bytes;
    }
    // By text, not by ids: a piece may hold characters that are no tokens by themselves.
    const auto find = [&](const MergeSymbol& left, const MergeSymbol& right) -> PairMerge {
      const size_t bytes = size_t{left.bytes} + right.bytes;
      if (bytes > vocab.max_token_bytes()) return {};
      const TokenId id = vocab.FindPlain(word.substr(left.begin, bytes));
      if (id < 0) return {};
      return {RankOf(vocab.data().scores[static_cast<size_t>(id)]), id};
    };
    PairCache cache(symbols.size());
    Merger(symbols, [&](const MergeSymbol& left, const MergeSymbol& right) {
      return cache.Get(left, right, find);
    }).Run();
    for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
      const MergeSymbol& symbol = symbols[static_cast<size_t>(i)];
      if (symbol.id >= 0) {
        out.push_back(symbol.id);
      } else {
        AppendBytes(word.substr(symbol.begin, symbol.bytes), out);
      }
    }
  }

  void AppendBytes(std::string_view symbol, std::vector<TokenId>& out) const {
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

  std::array<bool, 256> joins_space_{};  // bytes that stand before U+2581 in some token
};

}  // namespace

std::unique_ptr<Tokenizer> MakeSentencePiece(std::unique_ptr<const Vocabulary> vocabulary) {
  const VocabularyData& data = vocabulary->data();
  if (data.scores.empty())
    vocabulary->Fail("scores", fmt::format("is missing; a SentencePiece vocabulary needs it. {}", kConvertAgain));
  for (int byte = 0; byte < 256 && data.unknown < 0; ++byte) {
    if (vocabulary->ByteToken(static_cast<uint8_t>(byte)) >= 0) continue;
    vocabulary->Fail("tokens",
                     fmt::format("has no byte token <0x{:02X}> and tokenizer.ggml.unknown_token_id is missing: "
                                 "not every text can be written. {}",
                                 byte, kConvertAgain));
  }
  return std::make_unique<SentencePiece>(std::move(vocabulary));
}

}  // namespace thermocline
