#include "runtime/synth.h"

#include <cctype>

#include "models/error.h"
#include "models/quoted.h"
#include "runtime/catalog.h"
#include "runtime/commands/commands.h"
#include "runtime/output_file.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

// The one of `choices` that `name_of` calls `value`.
template <typename Choices, typename NameOf>
auto Choose(const char* flag, const std::string& value, const Choices& choices, const NameOf& name_of) {
  std::vector<std::string> names;
  for (const auto& choice : choices) {
    names.emplace_back(name_of(choice));
    if (names.back() == value) return choice;
  }
  const std::string nearest = Nearest(value, names);
  throw UsageError(fmt::format("{}: unknown {}{}; it is one of {}", flag, Quoted(value),
                               nearest.empty() ? "" : fmt::format(" (did you mean {}?)", nearest),
                               fmt::join(names, ", ")));
}

std::string UpperCase(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}

struct Request {
  std::string out;
  std::optional<std::string> shape, type, activation, heat, vocabulary;
  double sparsity = -1;
  int64_t seed = 1;
};

// False: help was asked for.
bool ParseRequest(const Command& command, std::vector<std::string> args, Request& request) {
  CommandLine line(command);
  line.AddPositional("OUT", &request.out, "The GGUF file to write; it appears when it is whole");
  line.AddText("--shape", "SHAPE", &request.shape, "Of which model: tiny, 1b, 3b, 7b or 8b");
  line.AddText("--type", "TYPE", &request.type, "Of the weights, but for the output head, which is Q8_0 (Q4_0)");
  line.AddText("--activation", "NAME", &request.activation, "silu or relu (silu)");
  line.AddDouble("--sparsity", &request.sparsity, 0, kMaxSparsity,
                 "With relu: the share of neurons that are silent, in the mean over tokens and neurons of each layer");
  line.AddText(
      "--heat", "NAME", &request.heat,
      "How often they fire: zipf, a few nearly always and most seldom; sorted, so, and standing in this order; "
      "topics, so, but others for words in small letters than for the rest of a text; flat, all alike (zipf)");
  line.AddInt("--seed", &request.seed, 0, UINT32_MAX, "The same seed gives the same file (1)");
  line.AddText("--vocabulary", "MODEL", &request.vocabulary, "Whose vocabulary it takes (the default model)");
  line.SetFooter("The weights are random, and what such a model says means nothing; it is for measuring speed.");
  if (!line.Parse(std::move(args))) return false;
  if (request.out.empty()) throw UsageError("OUT is needed");
  if (!request.shape) throw UsageError("--shape is missing: tiny, 1b, 3b, 7b or 8b");
  return true;
}

SynthOptions OptionsOf(const Request& request) {
  SynthOptions options;
  options.shape = Choose("--shape", *request.shape, SynthShapes(), [](const SynthShape& shape) { return shape.name; });
  if (request.type)
    options.type = Choose("--type", UpperCase(*request.type), SynthTypes(), [](DType type) { return Info(type).name; });
  constexpr Activation kActivations[] = {Activation::kSilu, Activation::kRelu};
  if (request.activation)
    options.activation =
        Choose("--activation", *request.activation, kActivations, [](Activation a) { return Name(a); });
  if (request.sparsity >= 0) options.sparsity = request.sparsity;
  if (options.sparsity && options.activation != Activation::kRelu)
    throw UsageError("--sparsity needs --activation relu: no other leaves neurons exactly silent");
  if (request.heat && !options.sparsity) throw UsageError("--heat needs --sparsity");
  constexpr PlantedHeat kHeats[] = {PlantedHeat::kZipf, PlantedHeat::kFlat, PlantedHeat::kSorted, PlantedHeat::kTopics};
  if (request.heat) options.heat = Choose("--heat", *request.heat, kHeats, [](PlantedHeat heat) { return Name(heat); });
  options.seed = static_cast<uint64_t>(request.seed);
  return options;
}

}  // namespace

int RunSynth(const Command& command, std::vector<std::string> args) {
  Request request;
  if (!ParseRequest(command, std::move(args), request)) return kGood;
  const SynthOptions options = OptionsOf(request);
  const GgufFile vocabulary = GgufFile::Open(ResolveModel(request.vocabulary.value_or("")));
  if (IsSameFile(vocabulary.path(), request.out))
    throw Error("{}: the vocabulary's file and OUT are the same; name another one for OUT", TerminalSafe(request.out));
  OutputFile out(request.out);
  WriteSynth(options, vocabulary, out);
  const uint64_t bytes = out.size();
  out.Commit();
  WriteOut(fmt::format("{}: {}, {}\n", TerminalSafe(request.out), HumanBytes(static_cast<double>(bytes)),
                       SynthName(options)));
  return kGood;
}

}  // namespace thermocline
