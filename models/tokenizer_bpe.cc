// Byte-level BPE, as GPT-2 has it: words are cut by a pre-tokenizer, their bytes merged in the order of the file's
// merges. In the file every byte stands as one visible character.
#include <array>
#include <bit>
#include <string>

#include "models/advice.h"
#include "models/error.h"
#include "models/quoted.h"
#include "models/tokenizer_merge.h"
#include "models/tokenizer_split.h"
#include "models/tokenizer_vocabulary.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

// Visible Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and on.
constexpr bool StandsForItself(unsigned c) {
  return (c >= 33 && c <= 126) || (c >= 161 && c <= 172) || (c >= 174 && c <= 255);
}

constexpr auto kCharOfByte = [] {
  std::array<char32_t, 256> chars{};
  char32_t next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) chars[byte] = StandsForItself(byte) ? byte : next++;
  return chars;
}();

// -1: stands for no byte.
int ByteOfChar(char32_t code) {
  static constexpr auto kBytes = [] {
    std::array<int, 256 + 68> bytes{};
    bytes.fill(-1);
    for (int byte = 0; byte < 256; ++byte) bytes[kCharOfByte[static_cast<size_t>(byte)]] = byte;
    return bytes;
  }();
  return code < kBytes.size() ? kBytes[code] : -1;
}

// (left id, right id) -> merge, by open addressing.
class PairTable {
 public:
  explicit PairTable(size_t n) : slots_(std::bit_ceil(2 * n + 2)) {}

  // False when the pair is already there.
  bool Insert(TokenId left, TokenId right, PairMerge merge) {
    Slot& slot = slots_[SlotOf(KeyOf(left, right))];
    if (slot.key != kFree) return false;
    slot = {KeyOf(left, right), merge};
    return true;
  }

  PairMerge Find(TokenId left, TokenId right) const { return slots_[SlotOf(KeyOf(left, right))].merge; }

 private:
  static constexpr uint64_t kFree = UINT64_MAX;  // ids are not negative
  struct Slot {
    uint64_t key = kFree;
    PairMerge merge;
  };
  static uint64_t KeyOf(TokenId left, TokenId right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  size_t SlotOf(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    const auto product = static_cast<unsigned __int128>(key) * 0x9E3779B97F4A7C15u;
    size_t slot = (static_cast<size_t>(product) ^ static_cast<size_t>(product >> 64)) & mask;
    while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & mask;
    return slot;
  }
  std::vector<Slot> slots_;
};

class ByteBpe final : public Tokenizer {
 public:
  ByteBpe(std::unique_ptr<const Vocabulary> owned, PreTokenizer pre)
      : Tokenizer(std::move(owned)), pre_(pre), pairs_(vocabulary().data().merges.size()) {
    const Vocabulary& vocab = vocabulary();
    for (unsigned byte = 0; byte < 256; ++byte) {
      std::string text;
      AppendUtf8(kCharOfByte[byte], text);
      token_of_byte_[byte] = vocab.FindPlain(text);
    }
    const auto& merges = vocab.data().merges;
    for (size_t rank = 0; rank < merges.size(); ++rank) AddMerge(merges[rank], static_cast<uint32_t>(rank));
  }

 private:
  void AddMerge(const std::string& merge, uint32_t rank) {
    const size_t space = merge.find(' ', 1);  // from 1: the left part is never empty
    const auto fail = [&](std::string_view what) {
      vocabulary().Fail("merges",
                        fmt::format("holds {} at index {}: {}. {}", Quoted(merge), rank, what, kDownloadAgain));
    };
    if (space == std::string::npos || space + 1 == merge.size()) fail("not two tokens with a space between them");
    const std::string_view left_text = std::string_view(merge).substr(0, space);
    const std::string_view right_text = std::string_view(merge).substr(space + 1);
    const std::string merged_text = std::string(left_text) + std::string(right_text);
    const TokenId left = vocabulary().Find(left_text), right = vocabulary().Find(right_text);
    const TokenId merged = vocabulary().Find(merged_text);
    if (left < 0) fail(fmt::format("{} is not in the vocabulary", Quoted(left_text)));
    if (right < 0) fail(fmt::format("{} is not in the vocabulary", Quoted(right_text)));
    if (merged < 0) fail(fmt::format("{} is not in the vocabulary", Quoted(merged_text)));
    if (!vocabulary().IsPlain(merged)) return;   // text never becomes a control token
    pairs_.Insert(left, right, {rank, merged});  // a repeated merge has the rank of its first
  }

  void EncodeRun(std::string_view run, bool /*starts*/, std::vector<TokenId>& out) const override {
    std::vector<MergeSymbol> symbols;
    const auto lookup = [this](const MergeSymbol& left, const MergeSymbol& right) {
      return pairs_.Find(left.id, right.id);
    };
    SplitWords(pre_, run, [&](std::string_view word) {
      symbols.clear();
      for (size_t i = 0; i < word.size(); ++i) {
        const TokenId id = token_of_byte_[static_cast<uint8_t>(word[i])];
        if (id >= 0) symbols.push_back({static_cast<uint32_t>(i), 1, id});
      }
      if (symbols.empty()) return;
      Merger(symbols, lookup).Run();
      for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
        out.push_back(symbols[static_cast<size_t>(i)].id);
    });
  }

  // Characters that stand for no byte stand for themselves.
  std::string PlainBytes(std::string_view text) const override {
    std::string bytes;
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Char c = DecodeUtf8(text, pos);
      const int byte = c.valid ? ByteOfChar(c.code) : -1;
      if (byte >= 0) {
        bytes += static_cast<char>(byte);
      } else {
        bytes += text.substr(pos, static_cast<size_t>(c.bytes));
      }
      pos += static_cast<size_t>(c.bytes);
    }
    return bytes;
  }

  PreTokenizer pre_;
  PairTable pairs_;
  std::array<TokenId, 256> token_of_byte_{};  // -1: none
};

}  // namespace

std::unique_ptr<Tokenizer> MakeByteBpe(std::unique_ptr<const Vocabulary> vocabulary) {
  const VocabularyData& data = vocabulary->data();
  if (data.pre.empty()) {
    vocabulary->Fail(
        "pre", fmt::format("is missing; a byte-level BPE needs one of {}. {}", PreTokenizerNames(), kConvertAgain));
  }
  const auto pre = PreTokenizerFromName(data.pre);
  if (!pre)
    vocabulary->Fail("pre", fmt::format("is {}; known pre-tokenizers are {}. {}", Quoted(data.pre), PreTokenizerNames(),
                                        kOtherModel));
  if (data.merges.empty())
    vocabulary->Fail("merges", fmt::format("is missing or empty; a byte-level BPE needs it. {}", kConvertAgain));
  return std::make_unique<ByteBpe>(std::move(vocabulary), *pre);
}

}  // namespace thermocline
