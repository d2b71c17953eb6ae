#include "models/tokenizer.h"

#include <algorithm>
#include <utility>

#include "models/advice.h"
#include "models/error.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "models/tokenizer_vocabulary.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

// The text of all pieces in one, and where in it control tokens count.
struct Joined {
  std::string text;
  std::vector<std::pair<size_t, bool>> ends;  // (end in text, special), neighbours differ
};

Joined Join(const std::vector<TextPiece>& pieces, size_t* replaced) {
  size_t bytes = 0;
  for (const TextPiece& piece : pieces) bytes += piece.text.size();
  if (bytes > kMaxTextBytes)
    throw Error("A text of {} bytes is more than the {} that can be tokenized at once.", bytes, kMaxTextBytes);
  Joined joined;
  joined.text.reserve(bytes);
  size_t n_replaced = 0;
  for (const TextPiece& piece : pieces) {
    n_replaced += AppendValidUtf8(piece.text, joined.text);
    if (joined.ends.empty() || joined.ends.back().second != piece.special) joined.ends.emplace_back(0, piece.special);
    joined.ends.back().first = joined.text.size();
  }
  if (replaced != nullptr) *replaced = n_replaced;
  return joined;
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const Vocabulary> vocabulary) : vocabulary_(std::move(vocabulary)) {}
Tokenizer::~Tokenizer() = default;

std::unique_ptr<Tokenizer> Tokenizer::FromGguf(const GgufFile& file) { return FromData(ReadVocabulary(file)); }

std::unique_ptr<Tokenizer> Tokenizer::FromData(VocabularyData data) {
  using Make = std::unique_ptr<Tokenizer> (*)(std::unique_ptr<const Vocabulary>);
  const Make make = data.model == "gpt2" ? MakeByteBpe : data.model == "llama" ? MakeSentencePiece : nullptr;
  if (make == nullptr) {
    throw Error(
        "{}: 'tokenizer.ggml.model' is {}; known tokenizers are gpt2 (byte-level BPE), llama (SentencePiece BPE). {}",
        data.where, Quoted(data.model), kOtherModel);
  }
  return make(std::make_unique<Vocabulary>(std::move(data)));
}

std::vector<TokenId> Tokenizer::Encode(std::string_view text, const EncodeOptions& options, size_t* replaced) const {
  return Encode({{std::string(text), options.parse_special}}, options.add_bos_eos, replaced);
}

std::vector<TokenId> Tokenizer::Encode(const std::vector<TextPiece>& pieces, bool add_bos_eos, size_t* replaced) const {
  const Joined joined = Join(pieces, replaced);
  const std::string_view text = joined.text;
  std::vector<TokenId> ids;
  size_t start = 0, pos = 0;  // [start, pos) holds no special token
  bool starts = true;
  const auto flush = [&] {
    if (pos > start) EncodeRun(text.substr(start, pos - start), starts, ids);
  };
  for (size_t piece = 0; pos < text.size();) {
    while (pos >= joined.ends[piece].first) ++piece;
    const auto& [end, special] = joined.ends[piece];
    const auto match = vocabulary_->specials().Longest(text, pos, special ? end : 0);
    if (match.id < 0) {
      ++pos;
      continue;
    }
    flush();
    ids.push_back(match.id);
    start = pos += match.bytes;
    starts = true;
  }
  flush();
  if (add_bos_eos && add_bos() && (ids.empty() || ids.front() != bos())) ids.insert(ids.begin(), bos());
  if (add_bos_eos && add_eos() && (ids.empty() || ids.back() != eos())) ids.push_back(eos());
  return ids;
}

std::string Tokenizer::Bytes(TokenId id, bool show_special) const {
  const std::string_view text = TokenText(id);
  switch (vocabulary_->type(id)) {
    case TokenType::kControl:
    case TokenType::kUnknown: return show_special ? std::string(text) : std::string();
    case TokenType::kUserDefined: return std::string(text);
    case TokenType::kByte: return std::string(1, static_cast<char>(vocabulary_->ByteValue(id)));
    case TokenType::kNormal:
    case TokenType::kUnused: break;
  }
  return PlainBytes(text);
}

std::string Tokenizer::Decode(const std::vector<TokenId>& ids, bool show_special) const {
  StreamDecoder decoder(*this, show_special);
  std::string text;
  for (const TokenId id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

int Tokenizer::n_vocab() const { return vocabulary_->size(); }
TokenId Tokenizer::bos() const { return vocabulary_->data().bos; }
TokenId Tokenizer::eos() const { return vocabulary_->data().eos; }
bool Tokenizer::add_bos() const { return vocabulary_->data().add_bos; }
bool Tokenizer::add_eos() const { return vocabulary_->data().add_eos; }
bool Tokenizer::add_space_prefix() const { return vocabulary_->data().add_space_prefix; }

bool Tokenizer::IsEndOfGeneration(TokenId id) const { return vocabulary_->IsEndOfGeneration(id); }

bool Tokenizer::IsControl(TokenId id) const { return id >= 0 && id < n_vocab() && vocabulary_->IsControl(id); }

bool Tokenizer::IsUserDefined(TokenId id) const {
  return id >= 0 && id < n_vocab() && vocabulary_->type(id) == TokenType::kUserDefined;
}

std::string_view Tokenizer::TokenText(TokenId id) const {
  if (id < 0 || id >= n_vocab()) throw Error("Token {} is outside the vocabulary of {} tokens.", id, n_vocab());
  return vocabulary_->text(id);
}

TokenId Tokenizer::FindSpecial(std::string_view text) const {
  const TokenId id = vocabulary_->Find(text);
  return IsControl(id) || IsUserDefined(id) ? id : -1;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool show_special)
    : tokenizer_(&tokenizer), show_special_(show_special) {}

std::string StreamDecoder::Push(TokenId id) {
  std::string bytes = tokenizer_->Bytes(id, show_special_);
  if (at_start_ && !tokenizer_->IsControl(id)) {
    const bool prefixed = tokenizer_->add_space_prefix() && !tokenizer_->IsUserDefined(id);
    if (prefixed && bytes.starts_with(' ')) bytes.erase(0, 1);
    at_start_ = false;
  }
  pending_ += bytes;
  size_t complete = 0;  // up to the beginning of a character that the end cuts off
  while (complete < pending_.size()) {
    const Utf8Char c = DecodeUtf8(pending_, complete);
    if (c.truncated) break;
    complete += static_cast<size_t>(c.bytes);
  }
  std::string text;
  AppendValidUtf8(std::string_view(pending_).substr(0, complete), text);
  pending_.erase(0, complete);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  AppendValidUtf8(pending_, text);
  pending_.clear();
  at_start_ = true;
  return text;
}

}  // namespace thermocline
