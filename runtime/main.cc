// The program: finds the command, runs it, and turns what went wrong into a line and an exit code.
#include <clocale>
#include <new>

#include "models/error.h"
#include "models/quoted.h"
#include "runtime/commands/commands.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr Command kCommands[] = {
    {"chat", "Chat with a model, or answer once", RunChat},
    {"tokenize", "Turn text into token ids, or back", RunTokenize},
    {"template", "Print the prompt that messages become", RunTemplate},
    {"inspect", "Show what a model file holds and what memory it needs", RunInspect},
    {"perplexity", "Measure how well a model predicts a text", RunPerplexity},
    {"profile", "Learn from a text which neurons of a model fire", RunProfile},
    {"quantize", "Write a model with smaller weights", RunQuantize},
    {"synth", "Write a model with random weights, for measuring speed", RunSynth},
    {"bench", "Measure the speed of prefill and decode", RunBench},
    {"plan", "Show which memory would hold what, and how fast a token would be", RunPlan},
    {"machine", "Show what this machine has and how fast it reads memory", RunMachine},
    {"pull", "Fetch a model into the cache", RunPull},
};

std::string Usage() {
  std::string text =
      "Run language models on the CPU, and on a GPU beside it.\n\nUsage: thermocline COMMAND [MODEL] "
      "[FLAGS]\n\nCommands:\n";
  for (const Command& command : kCommands) text += fmt::format("  {:<12}{}\n", command.name, command.summary);
  return text +
         "\nMODEL is a GGUF file or the name of a model in the cache; without one, the default model.\n"
         "`thermocline COMMAND --help` shows the flags of a command, `thermocline --version` the version.\n";
}

int Dispatch(const std::vector<std::string>& args) {
  if (args.empty()) {
    WriteErr(Usage());
    return kWrongUsage;
  }
  const std::string& word = args[0];
  if (word == "--help" || word == "-h" || word == "help") {
    WriteOut(Usage());
    return kGood;
  }
  if (word == "--version") {
    WriteOut("thermocline " THERMOCLINE_VERSION "\n");
    return kGood;
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (word == command.name) return command.run(command, {args.begin() + 1, args.end()});
    names.push_back(command.name);
  }
  const std::string nearest = Nearest(word, names);
  throw UsageError(fmt::format("unknown {} {}{}", word.starts_with('-') ? "flag" : "command", Quoted(word),
                               nearest.empty() ? "" : fmt::format("; did you mean `{}`?", nearest)));
}

int Main(int argc, char** argv) {
  GuardStandardStreams();
  std::setlocale(LC_CTYPE, "C.UTF-8");  // for line editing; nothing else asks the locale
  const std::vector<std::string> args(argv + std::min(argc, 1), argv + argc);
  try {
    return Dispatch(args);
  } catch (const UsageError& error) {
    Note("error: {}", error.what());
    bool known = false;
    for (const Command& command : kCommands) known |= args[0] == command.name;
    Note("`thermocline {}--help` shows what there is", known ? args[0] + " " : "");
    return kWrongUsage;
  } catch (const Error& error) {
    Note("error: {}", TerminalSafe(error.what()));
  } catch (const std::bad_alloc&) {
    Note("error: out of memory; a smaller context (-c) or a smaller model needs less");
  } catch (const std::exception& error) {
    Note("error: {}", TerminalSafe(error.what()));
  }
  return kFailed;
}

}  // namespace
}  // namespace thermocline

int main(int argc, char** argv) { return thermocline::Main(argc, argv); }
