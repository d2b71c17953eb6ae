#include "runtime/session.h"

#include <doctest/doctest.h>

#include <deque>
#include <string>

#include "models/error.h"
#include "models/unicode.h"
#include "runtime/stop_filter.h"
#include "tests/models/gguf_writer.h"

using namespace thermocline;

namespace {

// A byte-level vocabulary with one merge, "a" + "b" -> "ab", and ChatML's two control tokens.
GgufFile MakeVocabulary() {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  int next = 256;  // GPT-2 writes bytes that are no printable Latin-1 as the characters from 256 on
  for (int byte = 0; byte < 256; byte++) {
    const bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
    std::string text;
    AppendUtf8(static_cast<char32_t>(printable ? byte : next++), text);
    tokens.push_back(text);
    types.push_back(1);
  }
  for (const char* text : {"ab", "<|im_start|>", "<|im_end|>"}) {
    tokens.push_back(text);
    types.push_back(text[0] == '<' ? 3 : 1);
  }
  GgufWriter writer;
  writer.String("general.architecture", "llama")
      .String("tokenizer.ggml.model", "gpt2")
      .String("tokenizer.ggml.pre", "gpt-2")
      .Strings("tokenizer.ggml.tokens", tokens)
      .Ints("tokenizer.ggml.token_type", types)
      .Strings("tokenizer.ggml.merges", {"a b"})
      .U32("tokenizer.ggml.eos_token_id", 258);
  return writer.Open();
}
constexpr TokenId kEnd = 258;

// Says what it is told to, and counts what it is fed.
class FakeDecoder : public Decoder {
 public:
  explicit FakeDecoder(int n_ctx = 1000) : n_ctx_(n_ctx) {}
  int n_ctx() const override { return n_ctx_; }
  void Feed(std::span<const TokenId> tokens, int position, RowKind kind, bool logits) override {
    REQUIRE(position == static_cast<int>(held.size()));
    REQUIRE(tokens.size() <= static_cast<size_t>(kMaxBatchRows));
    REQUIRE(held.size() + tokens.size() <= static_cast<size_t>(n_ctx_));
    if (on_feed) on_feed();
    if (cancelled) {
      cancelled = false;
      throw Cancelled{};
    }
    held.insert(held.end(), tokens.begin(), tokens.end());
    (kind == RowKind::kPrompt ? prompt_rows : generated_rows) += static_cast<int>(tokens.size());
    if (!logits) return;
    logits_.assign(259, 0);
    TokenId next = kEnd;
    if (!script.empty()) {
      next = script.front();
      script.pop_front();
    }
    logits_[next] = 10;
  }
  std::span<const float> Logits() const override { return logits_; }
  int Truncate(int n) override {
    truncations++;
    held.resize(forgets_all ? 0 : n);
    return static_cast<int>(held.size());
  }
  void Cancel() override { cancelled = true; }

  void Say(std::string_view text) {
    for (const char c : text) script.push_back(ByteToken(c));
    script.push_back(kEnd);
  }
  static TokenId ByteToken(char c) { return static_cast<unsigned char>(c); }

  std::deque<TokenId> script;
  std::vector<TokenId> held;
  std::function<void()> on_feed;
  int prompt_rows = 0, generated_rows = 0, truncations = 0;
  bool cancelled = false, forgets_all = false;

 private:
  int n_ctx_;
  std::vector<float> logits_;
};

struct Fixture {
  explicit Fixture(int n_ctx = 1000) : decoder(n_ctx), session(decoder, *tokenizer, Greedy()) {
    options.on_text = [this](std::string_view text) { shown += text; };
  }
  static SamplerParams Greedy() {
    SamplerParams params;
    params.temperature = 0;
    return params;
  }
  std::vector<TokenId> Tokens(std::string_view text) { return tokenizer->Encode(text); }

  GgufFile file = MakeVocabulary();
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::FromGguf(file);
  ChatTemplate chatml = ChatTemplate::Load(file, *tokenizer, "chatml");
  FakeDecoder decoder;
  Session session;
  GenerateOptions options;
  std::string shown;
};

}  // namespace

TEST_CASE("session: an answer ends with the model's end of turn") {
  Fixture f;
  f.decoder.Say("Paris.");
  const Answer answer = f.session.Generate(f.Tokens("capital?"), f.options);
  CHECK(answer.text == "Paris.");
  CHECK(f.shown == "Paris.");
  CHECK(answer.ending == Ending::kEndOfTurn);
  CHECK(answer.n_prompt == 8);
  CHECK(answer.tokens.size() == 6);
  CHECK(f.decoder.prompt_rows == 8);
  CHECK(f.decoder.generated_rows == 6);
}

TEST_CASE("session: only what follows the common beginning is fed, and at least the last token") {
  Fixture f;
  f.decoder.Say("");
  f.session.Generate(f.Tokens("hello"), f.options);
  f.session.Generate(f.Tokens("hello world"), f.options);
  CHECK(f.decoder.prompt_rows == 11);
  CHECK(f.decoder.truncations == 0);
  f.session.Generate(f.Tokens("hello wide"), f.options);
  CHECK(f.decoder.prompt_rows == 11 + 3);
  CHECK(f.decoder.truncations == 1);
  f.session.Generate(f.Tokens("hello wide"), f.options);
  CHECK(f.decoder.prompt_rows == 11 + 3 + 1);
  CHECK(f.decoder.held == f.Tokens("hello wide"));
  f.decoder.forgets_all = true;  // a window that has moved on
  f.session.Generate(f.Tokens("hello"), f.options);
  CHECK(f.decoder.prompt_rows == 11 + 3 + 1 + 5);
  CHECK(f.decoder.held == f.Tokens("hello"));
}

TEST_CASE("session: long prompts are fed in chunks, with progress") {
  Fixture f(2000);
  std::vector<int64_t> progress;
  f.options.on_prefill = [&](int64_t done, int64_t total) {
    CHECK(total == 1100);
    progress.push_back(done);
  };
  f.session.Generate(f.Tokens(std::string(1100, 'x')), f.options);
  CHECK(progress == std::vector<int64_t>{512, 1024, 1100});
}

TEST_CASE("session: limits") {
  Fixture f(20);
  SUBCASE("n_predict") {
    f.decoder.Say("abcdefgh");
    f.options.n_predict = 3;
    const Answer answer = f.session.Generate(f.Tokens("x"), f.options);
    CHECK(answer.text == "abc");
    CHECK(answer.ending == Ending::kLimit);
  }
  SUBCASE("n_predict of 0 reads the prompt alone") {
    f.options.n_predict = 0;
    const Answer answer = f.session.Generate(f.Tokens("x"), f.options);
    CHECK(answer.tokens.empty());
    CHECK(f.decoder.prompt_rows == 1);
  }
  SUBCASE("the context runs full") {
    f.decoder.Say(std::string(50, 'y'));
    const Answer answer = f.session.Generate(f.Tokens("0123456789"), f.options);
    CHECK(answer.ending == Ending::kContextFull);
    CHECK(answer.text == std::string(11, 'y'));  // ten are held, and one more needs no place
    CHECK(f.session.n_held() == 20);
  }
  SUBCASE("a prompt as long as the context fits") {
    f.decoder.Say("yy");
    const Answer answer = f.session.Generate(f.Tokens(std::string(20, 'x')), f.options);
    CHECK(answer.ending == Ending::kContextFull);
    CHECK(answer.text == "y");
  }
  SUBCASE("a longer one is an error with both numbers") {
    std::string message;
    try {
      f.session.Generate(f.Tokens(std::string(21, 'x')), f.options);
    } catch (const Error& error) {
      message = error.what();
    }
    CHECK(message.find("21 tokens") != std::string::npos);
    CHECK(message.find("holds 20") != std::string::npos);
    CHECK(f.decoder.prompt_rows == 0);
  }
  SUBCASE("an empty one is an error") { CHECK_THROWS_AS(f.session.Generate({}, f.options), Error); }
}

TEST_CASE("session: characters come whole, and an incomplete one as U+FFFD") {
  Fixture f;
  std::vector<std::string> pieces;
  f.options.on_text = [&](std::string_view text) { pieces.emplace_back(text); };
  f.decoder.Say("\xc3\xa9!\xe2\x82");
  f.session.Generate(f.Tokens("x"), f.options);
  CHECK(pieces == std::vector<std::string>{"\xc3\xa9", "!", "\xef\xbf\xbd"});
}

TEST_CASE("session: an interruption keeps what was said") {
  Fixture f;
  f.decoder.Say("one two three");
  f.options.on_text = [&](std::string_view text) {
    f.shown += text;
    if (f.shown == "one ") f.session.Interrupt();
  };
  Answer answer = f.session.Generate(f.Tokens("count"), f.options);
  CHECK(answer.ending == Ending::kInterrupted);
  CHECK(answer.text == "one ");

  // It came too late to stop a step; the next answer must not suffer from it.
  f.decoder.script.clear();
  f.decoder.Say("fine");
  f.options.on_text = {};
  answer = f.session.Generate(f.Tokens("again"), f.options);
  CHECK(answer.ending == Ending::kEndOfTurn);
  CHECK(answer.text == "fine");
}

TEST_CASE("session: an interruption within a step leaves what was held before it") {
  Fixture f;
  f.decoder.on_feed = [&] {
    if (f.decoder.held.size() == 512) f.session.Interrupt();
  };
  const Answer answer = f.session.Generate(f.Tokens(std::string(900, 'x')), f.options);
  CHECK(answer.ending == Ending::kInterrupted);
  CHECK(answer.tokens.empty());
  CHECK(f.session.n_held() == 512);
  CHECK(f.decoder.held.size() == 512);
}

TEST_CASE("session: where the engine lost all sequences, the next request feeds everything again") {
  Fixture f;
  f.decoder.Say("one");
  f.session.Generate(f.Tokens("abc"), f.options);
  f.decoder.on_feed = [&] {
    f.decoder.held.clear();
    throw SequencesLost("the device was lost");
  };
  CHECK_THROWS_AS(f.session.Generate(f.Tokens("abcd"), f.options), SequencesLost);
  f.decoder.on_feed = {};
  f.decoder.script.clear();
  f.decoder.Say("two");
  f.shown.clear();
  f.session.Generate(f.Tokens("abcd"), f.options);
  CHECK(f.shown == "two");
}

TEST_CASE("conversation: a second turn costs only its new tokens, however the answer would be encoded") {
  Fixture f;
  Conversation conversation(f.session, *f.tokenizer, f.chatml, "Be brief.");
  f.decoder.Say("ab\n");  // as three tokens, where encoding makes two
  conversation.Ask("cab?", f.options);
  const auto held = f.decoder.held;
  f.decoder.prompt_rows = 0;
  f.decoder.Say("yes");
  conversation.Ask("sure?", f.options);
  CHECK(f.decoder.truncations == 0);
  CHECK(std::equal(held.begin(), held.end(), f.decoder.held.begin()));
  const auto added =
      f.tokenizer->Encode({{"<|im_end|>\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n", true}});
  CHECK(f.decoder.prompt_rows == static_cast<int>(added.size()));
}

TEST_CASE("conversation: what was cut off the answer is not in the next prompt") {
  Fixture f;
  Conversation conversation(f.session, *f.tokenizer, f.chatml, "");
  f.decoder.Say("good STOP bad");
  f.options.stops = {"STOP"};
  const Answer answer = conversation.Ask("q", f.options);
  CHECK(answer.ending == Ending::kStopString);
  CHECK(answer.text == "good ");
  CHECK(f.shown == "good ");
  f.decoder.script.clear();
  f.decoder.Say("fine");
  conversation.Ask("r", f.options);
  const std::string prompt = f.tokenizer->Decode(f.decoder.held, true);
  CHECK(prompt.find("assistant\ngood <|im_end|>") != std::string::npos);
  CHECK(prompt.find("STOP") == std::string::npos);
}

TEST_CASE("conversation: text of a message never becomes a control token") {
  Fixture f;
  Conversation conversation(f.session, *f.tokenizer, f.chatml, "");
  f.decoder.Say("ok");
  conversation.Ask("x<|im_end|>y", f.options);
  f.decoder.Say("ok");
  conversation.Ask("<|im_start|>", f.options);
  const auto ends = std::count(f.decoder.held.begin(), f.decoder.held.end(), kEnd);
  CHECK(ends == 3);  // after two questions and the first answer
}

TEST_CASE("conversation: a message that failed is forgotten") {
  Fixture f(100);
  Conversation conversation(f.session, *f.tokenizer, f.chatml, "");
  CHECK_THROWS_AS(conversation.Ask(std::string(200, 'x'), f.options), Error);
  f.decoder.Say("ok");
  CHECK(conversation.Ask("y", f.options).text == "ok");
  CHECK(f.tokenizer->Decode(f.decoder.held, true).find("xx") == std::string::npos);
}

TEST_CASE("conversation: cleared, it begins anew with the system prompt") {
  Fixture f;
  Conversation conversation(f.session, *f.tokenizer, f.chatml, "sys");
  f.decoder.Say("1");
  conversation.Ask("first", f.options);
  conversation.Clear();
  f.decoder.Say("2");
  conversation.Ask("second", f.options);
  const std::string held = f.tokenizer->Decode(f.decoder.held, true);
  CHECK(held.find("sys") != std::string::npos);
  CHECK(held.find("first") == std::string::npos);
}

TEST_CASE("stop filter: holds back what may become a stop string") {
  StopFilter filter({"END", "\n\n"});
  CHECK(filter.Push("a E") == "a ");
  CHECK(filter.Push("N") == "");
  CHECK(filter.Push("x") == "ENx");
  CHECK(filter.Push("\n") == "");
  CHECK(filter.Push("y EE") == "\ny E");
  CHECK(filter.Push("ND tail") == "");
  CHECK(filter.stopped());
  CHECK(filter.Push("more") == "");
  CHECK(filter.Finish() == "");

  StopFilter open({"END"});
  CHECK(open.Push("EN") == "");
  CHECK(open.Finish() == "EN");

  StopFilter first({"cd", "bcde"});
  CHECK(first.Push("abcde") == "a");
}
