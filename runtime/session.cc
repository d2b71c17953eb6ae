#include "runtime/session.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "models/error.h"
#include "runtime/stop_filter.h"

namespace thermocline {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<TokenId> PromptTokens(const Tokenizer& tokenizer, const std::vector<TextPiece>& pieces) {
  auto tokens = tokenizer.Encode(pieces, true);
  if (tokenizer.add_eos() && !tokens.empty() && tokens.back() == tokenizer.eos()) tokens.pop_back();
  return tokens;
}

void EngineDecoder::Feed(std::span<const TokenId> tokens, int position, RowKind kind, bool logits) {
  batch_.clear();
  for (const TokenId token : tokens) batch_.push_back({token, sequence_, position++, kind, false});
  batch_.back().logits = logits;
  if (logits) batch_.back().kind = RowKind::kGenerated;
  engine_.Step(batch_);
}

Session::Session(Decoder& decoder, const Tokenizer& tokenizer, const SamplerParams& sampler)
    : decoder_(decoder), tokenizer_(tokenizer), sampler_(sampler) {}

void Session::Interrupt() {
  interrupted_.store(true, std::memory_order_relaxed);
  decoder_.Cancel();
}

// False when interrupted; the engine then holds what it held before.
bool Session::Feed(std::span<const TokenId> tokens, RowKind kind, bool logits) {
  for (;;) {
    if (interrupted_.load(std::memory_order_relaxed)) return false;
    try {
      decoder_.Feed(tokens, n_held(), kind, logits);
      held_.insert(held_.end(), tokens.begin(), tokens.end());
      return true;
    } catch (const SequencesLost&) {
      held_.clear();
      throw;
    } catch (const Cancelled&) {
      // A Cancel that came too late for the answer before hits this one's first step: go round again.
    }
  }
}

bool Session::Prefill(const std::vector<TokenId>& prompt, const GenerateOptions& options, Answer& answer) {
  // The last token is fed in any case, for its logits.
  const size_t common = std::mismatch(held_.begin(), held_.end(), prompt.begin(), prompt.end()).first - held_.begin();
  const size_t keep = std::min(common, prompt.size() - 1);
  if (keep < held_.size()) held_.resize(decoder_.Truncate(static_cast<int>(keep)));

  const size_t start = held_.size();
  while (held_.size() < prompt.size()) {
    const auto n = static_cast<size_t>(decoder_.PromptRows(static_cast<int>(prompt.size() - held_.size())));
    const bool last = held_.size() + n == prompt.size();
    if (!Feed(std::span(prompt).subspan(held_.size(), n), RowKind::kPrompt, last)) return false;
    answer.n_prompt = static_cast<int>(held_.size() - start);
    if (options.on_prefill) options.on_prefill(answer.n_prompt, static_cast<int64_t>(prompt.size() - start));
  }
  return true;
}

Ending Session::Continue(std::vector<TokenId> history, const GenerateOptions& options, Answer& answer) {
  StreamDecoder decoder(tokenizer_);
  if (options.continues) decoder.Push(history.back());
  StopFilter filter(options.stops);
  const auto show = [&](const std::string& text) {
    answer.text += text;
    if (options.on_text && !text.empty()) options.on_text(text);
  };
  const auto end = [&](Ending ending) {
    show(filter.Push(decoder.Finish()));
    show(filter.Finish());
    return ending;
  };
  if (options.n_predict == 0) return Ending::kLimit;
  for (;;) {
    const TokenId token = sampler_.Sample(decoder_.Logits(), history);
    if (tokenizer_.IsEndOfGeneration(token)) return end(Ending::kEndOfTurn);
    history.push_back(token);
    answer.tokens.push_back(token);
    show(filter.Push(decoder.Push(token)));
    if (filter.stopped()) return Ending::kStopString;
    if (static_cast<int>(answer.tokens.size()) == options.n_predict) return end(Ending::kLimit);
    if (n_held() == n_ctx()) return end(Ending::kContextFull);
    if (!Feed(std::span(&token, 1), RowKind::kGenerated, true)) return end(Ending::kInterrupted);
    answer.n_steps++;
  }
}

Answer Session::Generate(const std::vector<TokenId>& prompt, const GenerateOptions& options) {
  if (prompt.empty()) throw Error("the prompt is empty: give some text with -p, -f or on standard input");
  if (prompt.size() > static_cast<size_t>(n_ctx())) {
    throw Error("the prompt has {} tokens, but the context holds {}: shorten it or ask for more with -c", prompt.size(),
                n_ctx());
  }
  interrupted_.store(false, std::memory_order_relaxed);
  Answer answer;
  auto start = std::chrono::steady_clock::now();
  const bool complete = Prefill(prompt, options, answer);
  answer.prompt_s = SecondsSince(start);
  start = std::chrono::steady_clock::now();
  answer.ending = complete ? Continue(prompt, options, answer) : Ending::kInterrupted;
  answer.steps_s = SecondsSince(start);
  return answer;
}

Conversation::Conversation(Session& session, const Tokenizer& tokenizer, const ChatTemplate& chat_template,
                           std::string system)
    : session_(session), tokenizer_(tokenizer), template_(chat_template), system_(std::move(system)) {
  Clear();
}

void Conversation::Clear() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({"system", system_});
  last_text_.clear();
  last_tokens_.clear();
}

// The prompt's tokens, beginning with those of the last turn where the text does.
std::vector<TokenId> Conversation::Encode(const std::vector<TextPiece>& pieces) const {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  if (!last_tokens_.empty() && text.starts_with(last_text_)) {
    std::vector<TextPiece> rest;
    size_t skip = last_text_.size();
    for (const TextPiece& piece : pieces) {
      const size_t n = std::min(skip, piece.text.size());
      if (n < piece.text.size()) rest.push_back({piece.text.substr(n), piece.special});
      skip -= n;
    }
    const auto more = tokenizer_.Encode(rest, false);
    // Only a special token is sure to be split from the text before it.
    if (!more.empty() && tokenizer_.FindSpecial(tokenizer_.TokenText(more.front())) == more.front()) {
      auto tokens = last_tokens_;
      tokens.insert(tokens.end(), more.begin(), more.end());
      return tokens;
    }
  }
  return PromptTokens(tokenizer_, pieces);
}

Answer Conversation::Ask(std::string message, const GenerateOptions& options) {
  messages_.push_back({"user", std::move(message)});
  std::vector<TokenId> prompt;
  Answer answer;
  std::string text;
  try {
    const auto pieces = template_.Render(messages_, true);
    for (const TextPiece& piece : pieces) text += piece.text;
    prompt = Encode(pieces);
    answer = session_.Generate(prompt, options);
  } catch (...) {
    messages_.pop_back();
    throw;
  }
  if (answer.ending == Ending::kInterrupted && answer.text.empty()) {
    messages_.pop_back();
    return answer;
  }
  messages_.push_back({"assistant", answer.text});
  last_text_.clear();
  last_tokens_.clear();
  if (tokenizer_.Decode(answer.tokens) == answer.text) {
    last_text_ = text + answer.text;
    last_tokens_ = std::move(prompt);
    last_tokens_.insert(last_tokens_.end(), answer.tokens.begin(), answer.tokens.end());
  }
  return answer;
}

}  // namespace thermocline
