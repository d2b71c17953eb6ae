// One sequence of the engine and what is said in it: Session feeds tokens and generates, Conversation keeps messages.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/chat_template.h"
#include "models/tokenizer.h"
#include "runtime/engine.h"
#include "runtime/sampler.h"

namespace thermocline {

// What a session needs of the engine: one sequence. A test stands a fake behind it.
class Decoder {
 public:
  virtual ~Decoder() = default;
  virtual int n_ctx() const = 0;
  // Appends tokens at `position`, the sequence's length; where `logits`, Logits() are those of the last one, whose row
  // is of the generated kind then.
  virtual void Feed(std::span<const TokenId> tokens, int position, RowKind kind, bool logits) = 0;
  virtual int PromptRows(int n_left) const { return std::min(n_left, kMaxBatchRows); }  // as Engine::PromptRows
  virtual std::span<const float> Logits() const = 0;                                    // (n_vocab)
  virtual int Truncate(int n) = 0;                                                      // as Engine::Truncate
  virtual void Cancel() = 0;                                                            // as Engine::Cancel
};

class EngineDecoder final : public Decoder {
 public:
  explicit EngineDecoder(Engine& engine) : engine_(engine), sequence_(engine.NewSequence()) {}
  ~EngineDecoder() override { engine_.FreeSequence(sequence_); }
  int n_ctx() const override { return engine_.n_ctx(); }
  void Feed(std::span<const TokenId> tokens, int position, RowKind kind, bool logits) override;
  int PromptRows(int n_left) const override { return engine_.PromptRows(n_left); }
  std::span<const float> Logits() const override { return engine_.Logits(0); }
  int Truncate(int n) override { return engine_.Truncate(sequence_, n); }
  void Cancel() override { engine_.Cancel(); }

 private:
  Engine& engine_;
  int sequence_;
  Batch batch_;
};

enum class Ending : uint8_t {
  kEndOfTurn,  // the model said so
  kStopString,
  kLimit,  // n_predict
  kContextFull,
  kInterrupted,
};

struct GenerateOptions {
  int n_predict = -1;              // tokens at most; -1: no limit
  bool continues = false;          // the answer goes on with the prompt's text: a space at its beginning belongs to it
  std::vector<std::string> stops;  // texts that end the answer and are not part of it
  std::function<void(std::string_view text)> on_text;           // whole UTF-8 characters
  std::function<void(int64_t done, int64_t total)> on_prefill;  // tokens fed
};

struct Answer {
  std::string text;
  std::vector<TokenId> tokens;  // without the one that ended the turn
  Ending ending = Ending::kEndOfTurn;
  int n_prompt = 0;  // tokens fed before the first answer token, and the time it took
  double prompt_s = 0;
  int n_steps = 0;  // tokens fed one by one afterwards
  double steps_s = 0;
};

class Session {
 public:
  Session(Decoder& decoder, const Tokenizer& tokenizer, const SamplerParams& sampler);

  // Makes the engine hold `prompt`, feeding only what follows the part it already holds, and generates from there.
  // Throws Error when the prompt is empty or longer than the context (with both numbers).
  Answer Generate(const std::vector<TokenId>& prompt, const GenerateOptions& options);

  // From any thread or signal handler: the running Generate ends with kInterrupted and what it has.
  void Interrupt();

  int n_held() const { return static_cast<int>(held_.size()); }
  int n_ctx() const { return decoder_.n_ctx(); }
  uint32_t seed() const { return sampler_.seed(); }

 private:
  bool Feed(std::span<const TokenId> tokens, RowKind kind, bool logits);
  bool Prefill(const std::vector<TokenId>& prompt, const GenerateOptions& options, Answer& answer);
  Ending Continue(std::vector<TokenId> history, const GenerateOptions& options, Answer& answer);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  Sampler sampler_;
  std::vector<TokenId> held_;  // what the engine holds of the sequence
  std::atomic<bool> interrupted_ = false;
};

// A prompt to be continued: BOS in front where the model wants it, but no EOS behind.
std::vector<TokenId> PromptTokens(const Tokenizer& tokenizer, const std::vector<TextPiece>& pieces);

// Messages rendered by a template. A further turn costs only its new tokens: where the rendered text goes on from the
// last prompt and answer, so do the tokens, however the answer would be split when encoded anew.
class Conversation {
 public:
  // `system` may be empty: none.
  Conversation(Session& session, const Tokenizer& tokenizer, const ChatTemplate& chat_template, std::string system);

  // Throws what Session::Generate and ChatTemplate::Render throw; the message is then forgotten, as it is when
  // interrupted before the first word of the answer.
  Answer Ask(std::string message, const GenerateOptions& options);
  void Clear();

 private:
  std::vector<TokenId> Encode(const std::vector<TextPiece>& pieces) const;

  Session& session_;
  const Tokenizer& tokenizer_;
  const ChatTemplate& template_;
  std::string system_;
  std::vector<Message> messages_;
  std::string last_text_;             // prompt and answer of the last turn, and their tokens;
  std::vector<TokenId> last_tokens_;  // empty where text and tokens differ
};

}  // namespace thermocline
