#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <random>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "models/chat_template.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/tokenizer.h"
#include "runtime/catalog.h"
#include "runtime/commands/commands.h"
#include "runtime/device_flags.h"
#include "runtime/heat_follower.h"
#include "runtime/kv_types.h"
#include "runtime/line_editor.h"
#include "runtime/load.h"
#include "runtime/progress.h"
#include "runtime/pull.h"
#include "runtime/session.h"
#include "runtime/sparsity.h"
#include "runtime/text_io.h"
#include "runtime/trace_file.h"

namespace thermocline {
namespace {

struct ChatOptions {
  std::optional<std::string> prompt, path, system, which_template;
  int n_ctx = 0, n_threads = 0, n_threads_batch = 0;
  SamplerParams sampler;
  int64_t seed = -1;
  GenerateOptions generate;
  bool raw = false, cache_packed = false, adapts = false;
  KvTypes kv_types;
  SparsityFlag sparsity;
  DeviceFlags device;
};

void AddFlags(CommandLine& line, ChatOptions& options) {
  line.AddModel();
  line.AddText("-p,--prompt", "TEXT", &options.prompt,
               "Answer this once and leave; standard input, if it is no terminal, follows it");
  line.AddText("-f,--file", "FILE", &options.path, "Answer the text of a file; it follows -p");
  line.AddText("--sys,--system-prompt", "TEXT", &options.system,
               "What the model is told before the conversation; also -sys");
  line.AddText("--template,--chat-template", "NAME", &options.which_template,
               "chatml, gemma, or a file, instead of the model's own template");
  line.AddFlag("--raw", &options.raw, "No template: go on with the text as it is");
  line.AddInt("-c,--ctx-size", &options.n_ctx, 0, kMaxContext,
              "Tokens of context (0: what memory holds, at most 8192)");
  line.AddInt("-n,--predict,--n-predict", &options.generate.n_predict, -1, kMaxContext,
              "Tokens of an answer at most (-1: until the model ends it)");
  line.AddInt("-t,--threads", &options.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.AddInt("--tb,--threads-batch", &options.n_threads_batch, 1, kMaxThreads,
              "Threads while reading a prompt; also -tb (as many as -t)");
  AddKvTypes(line, &options.kv_types);
  line.AddFlag("--cache-packed", &options.cache_packed, kCachePackedHelp);
  options.sparsity.AddFlag(line);
  options.device.AddFlags(line);
  line.AddFlag("--adapt", &options.adapts,
               "Learn from the answers which neurons fire, keep that in the .heat file, and, while waiting for input, "
               "move those that have become the hottest to the device");
  line.AddInt("-s,--seed", &options.seed, -1, UINT32_MAX, "Seed of the choice of words (-1: another one each time)");
  line.AddDouble("--temp,--temperature", &options.sampler.temperature, 0, 100,
                 "Temperature; 0: always the likeliest (0.8)");
  line.AddInt("--top-k", &options.sampler.top_k, 0, kMaxVocabulary, "Choose among so many; 0: all (40)");
  line.AddDouble("--top-p", &options.sampler.top_p, 0, 1,
                 "... among the likeliest that together have it; 1: all (0.95)");
  line.AddDouble("--min-p", &options.sampler.min_p, 0, 1,
                 "... among those at least so likely as the likeliest times X (0.05)");
  line.AddDouble("--repeat-penalty", &options.sampler.repeat_penalty, 0.01, 100,
                 "Make the last 64 tokens less likely; 1: off (1)");
  line.AddTextList("--stop", "TEXT", &options.generate.stops, "End the answer before this text; may be given again");
}

void CheckOptions(ChatOptions& options) {
  options.sparsity.Check();
  options.device.Check();
  for (const std::string& stop : options.generate.stops) {
    if (stop.empty()) throw UsageError("--stop: an empty text would end every answer");
  }
  if (options.raw && options.system) throw UsageError("--raw and --system-prompt exclude each other");
  if (options.raw && options.which_template) throw UsageError("--raw and --template exclude each other");
}

std::string WithoutLastNewline(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

// -p, -f and standard input, in this order, with an empty line between; nullopt: nobody gave any.
std::optional<std::string> GivenPrompt(const ChatOptions& options) {
  std::vector<std::string> parts;
  if (options.prompt) parts.push_back(ValidText(*options.prompt, "the prompt"));
  if (options.path) parts.push_back(WithoutLastNewline(ValidText(ReadText(*options.path), *options.path)));
  if (!InputIsTerminal()) parts.push_back(WithoutLastNewline(ValidText(ReadInput(), "standard input")));
  if (parts.empty()) return std::nullopt;
  std::string prompt;
  for (const std::string& part : parts) {
    if (part.empty()) continue;
    if (!prompt.empty()) prompt += "\n\n";
    prompt += part;
  }
  if (prompt.empty()) throw Error("the prompt is empty: give some text with -p, -f or on standard input");
  return prompt;
}

// Ctrl-C stops the session that is answering; while none is, it wakes whoever reads the terminal.
std::atomic<Session*> answering = nullptr;
std::atomic<int> wake_fd = -1;

void OnInterrupt(int) {
  const int saved_errno = errno;
  if (Session* session = answering.load()) {
    session->Interrupt();
  } else {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(wake_fd.load(), &one, sizeof(one));
  }
  errno = saved_errno;
}

void CatchInterrupt() {
  wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  struct sigaction action = {};
  action.sa_handler = OnInterrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

class Answering {
 public:
  explicit Answering(Session& session) { answering = &session; }
  ~Answering() { answering = nullptr; }
};

std::string Dim(const std::string& text) { return ErrorIsTerminal() ? "\x1b[2m" + text + "\x1b[0m" : text; }

std::string Rate(int tokens, double seconds) {
  return seconds > 0 ? fmt::format("{:.1f} tok/s", tokens / seconds) : "- tok/s";
}

void PrintStatistics(const Session& session, const Answer& answer, const std::string& neurons, bool seeded) {
  std::string line = fmt::format("[prompt {} tokens, {} | answer {} tokens", answer.n_prompt,
                                 Rate(answer.n_prompt, answer.prompt_s), answer.tokens.size());
  if (answer.n_steps > 0) line += ", " + Rate(answer.n_steps, answer.steps_s);
  line += fmt::format(" | context {} of {}", session.n_held(), session.n_ctx());
  if (!neurons.empty()) line += " | " + neurons;
  if (seeded) line += fmt::format(" | seed {}", session.seed());
  Note("{}", Dim(line + "]"));
}

std::string EndingText(const Session& session, const Answer& answer) {
  if (answer.ending != Ending::kContextFull) return {};
  return fmt::format("the context is full, {} of {} tokens: the answer stops here; ask for more with -c",
                     session.n_held(), session.n_ctx());
}

// Streams to standard output; a terminal gets no control characters from the model.
void ShowText(std::string_view text) {
  if (OutputIsTerminal()) {
    WriteOut(TerminalSafe(text));
  } else {
    WriteOut(text);
  }
}

class Chat {
 public:
  Chat(const GgufFile& file, ChatOptions options, Tracer* tracer) : options_(std::move(options)) {
    const Model model = Model::FromGguf(file);
    tokenizer_ = Tokenizer::FromGguf(file);
    if (!options_.raw) template_ = ChatTemplate::Load(file, *tokenizer_, options_.which_template.value_or(""));
    name_ = std::filesystem::path(file.path()).stem().string();
    LoadOptions load = options_.sparsity.Choose(file, model);
    load.count_firings = options_.adapts;
    if (options_.adapts) follower_.emplace(file, model, load.ffn, options_.device.HeatFile(file));
    engine_ = LoadEngine(file, model,
                         {.n_ctx = options_.n_ctx,
                          .n_threads = options_.n_threads,
                          .n_threads_batch = options_.n_threads_batch,
                          .kv_types = options_.kv_types,
                          .load = load,
                          .tracer = tracer,
                          .device = options_.device.Open(file, model, load.ffn, options_.adapts)},
                         options_.cache_packed);
    audit_ = options_.sparsity.Apply(*engine_);
    if (follower_) follower_->Start(*engine_, model);
    if (engine_->n_ctx() > model.config.n_ctx_train) {
      Note("note: the model was trained for a context of {} tokens, not {}", model.config.n_ctx_train,
           engine_->n_ctx());
    }
    decoder_.emplace(*engine_);
    options_.sampler.seed = options_.seed >= 0 ? static_cast<uint32_t>(options_.seed) : std::random_device{}();
    session_.emplace(*decoder_, *tokenizer_, options_.sampler);
    if (template_)
      conversation_.emplace(*session_, *tokenizer_, *template_,
                            ValidText(options_.system.value_or(""), "the system prompt"));
  }

  int Once(const std::string& prompt) {
    const Answer answer = Run(prompt);
    if (follower_) follower_->Finish();
    const std::string complaint = EndingText(*session_, answer);
    if (!complaint.empty()) throw Error("{}", complaint);
    return answer.ending == Ending::kInterrupted ? kStopped : kGood;
  }

  int Interactive();

 private:
  // While this stands nobody uses the engine, and neurons move.
  class Idle {
   public:
    explicit Idle(std::optional<HeatFollower>& follower) : follower_(follower) {
      if (follower_) follower_->Begin();
    }
    ~Idle() {
      if (follower_) follower_->End();
    }

   private:
    std::optional<HeatFollower>& follower_;
  };
  int Converse();
  Answer Run(const std::string& prompt);
  void Say(const std::string& prompt);

  ChatOptions options_;
  std::string name_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> template_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<FfnAuditor> audit_;
  std::optional<HeatFollower> follower_;
  std::optional<EngineDecoder> decoder_;
  std::optional<Session> session_;
  std::optional<Conversation> conversation_;
};

Answer Chat::Run(const std::string& prompt) {
  std::optional<Progress> progress(std::in_place, "reading the prompt", "tokens");
  GenerateOptions generate = options_.generate;
  generate.on_prefill = [&](int64_t done, int64_t total) {
    progress->Update(done, total);
    if (done == total) progress.reset();
  };
  generate.on_text = ShowText;
  generate.continues = options_.raw;
  const Answering guard(*session_);
  const Answer answer = conversation_ ? conversation_->Ask(prompt, generate)
                                      : session_->Generate(PromptTokens(*tokenizer_, {{prompt, true}}), generate);
  progress.reset();
  if (follower_) follower_->AfterAnswer();
  if (answer.ending == Ending::kInterrupted && answer.tokens.empty()) {
    Note("stopped before the answer began");
    return answer;
  }
  WriteOut("\n");
  std::string neurons = DescribeNeurons(engine_->TakeNeuronCount(), audit_.get());
  if (const std::string followed = follower_ ? follower_->Describe() : ""; !followed.empty())
    neurons += ", " + followed;
  PrintStatistics(*session_, answer, neurons, options_.sampler.temperature > 0);
  return answer;
}

void Chat::Say(const std::string& prompt) {
  try {
    const Answer answer = Run(prompt);
    const std::string complaint = EndingText(*session_, answer);
    if (!complaint.empty()) Note("{}; or begin anew with /clear", complaint);
  } catch (const Error& error) {
    Note("error: {}", TerminalSafe(error.what()));
  }
}

std::filesystem::path HistoryPath() {
  try {
    std::filesystem::create_directories(CacheDir());
    return CacheDir() / "chat_history";
  } catch (const std::exception&) {
    return {};  // no place for it: no history, that is all
  }
}

int Chat::Interactive() {
  const int code = Converse();
  if (follower_) follower_->Finish();
  return code;
}

int Chat::Converse() {
  Note("{}: context {}, {} thread{}, {}. /help says more; Ctrl-D leaves.", TerminalSafe(name_), engine_->n_ctx(),
       engine_->n_threads(), engine_->n_threads() == 1 ? "" : "s", Name(ChooseIsa()));
  LineEditor editor("> ", HistoryPath(), wake_fd);
  std::string line;
  bool leaving = false;
  for (;;) {
    const auto event = [&] {
      const Idle idle(follower_);
      return editor.Read(line);
    }();
    switch (event) {
      case LineEditor::Event::kEnd: WriteErr("\n"); return kGood;
      case LineEditor::Event::kInterrupted:
        if (leaving && line.empty()) {
          WriteErr("\n");
          return kGood;
        }
        Note("{}", line.empty() ? "\n(Ctrl-C again or Ctrl-D leaves)" : "^C");
        leaving = true;
        continue;
      case LineEditor::Event::kLine: break;
    }
    leaving = false;
    const auto last = line.find_last_not_of(" \t\r\n");
    const std::string word = line.substr(0, last == std::string::npos ? 0 : last + 1);
    if (word.empty()) continue;
    if (word == "/exit" || word == "/quit") return kGood;
    if (word == "/clear") {
      conversation_->Clear();
      Note("The conversation begins anew.");
    } else if (word == "/help") {
      Note("/clear begins a new conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer and keeps it.");
    } else {
      Say(ValidText(line, "the line"));
    }
  }
}

}  // namespace

int RunChat(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  ChatOptions options;
  TraceFile trace;
  AddFlags(line, options);
  trace.AddFlag(line);
  if (!line.Parse(std::move(args))) return kGood;
  CheckOptions(options);
  // The first chat fetches the default model itself.
  if (!line.NamesModel() && !IsPresent(*FindCatalog(""))) Pull(*FindCatalog(""));
  const std::filesystem::path path = line.ModelPath();
  const auto prompt = GivenPrompt(options);
  if (!prompt && options.raw) throw UsageError("--raw needs a text: -p, -f or standard input");

  trace.Open();
  int code;
  {
    Chat chat(GgufFile::Open(path), options, trace.tracer());
    CatchInterrupt();
    code = prompt ? chat.Once(*prompt) : chat.Interactive();
  }
  trace.Write();
  return code;
}

}  // namespace thermocline
