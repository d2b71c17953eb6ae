#include "cpu/team.h"
#include "models/error.h"
#include "models/quoted.h"
#include "runtime/catalog.h"
#include "runtime/commands/commands.h"
#include "runtime/quantizer.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

std::string TypeNames() {
  std::string names;
  for (const DType type : QuantizeTypes()) names += fmt::format("{}{}", names.empty() ? "" : ", ", Info(type).name);
  return names;
}

DType ParseType(const std::string& name) {
  if (const auto type = FindQuantizeType(name)) return *type;
  std::vector<std::string> names;
  for (const DType type : QuantizeTypes()) names.emplace_back(Info(type).name);
  std::string upper = name;
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  const std::string nearest = Nearest(upper, names);
  throw UsageError(fmt::format("--type: unknown type {}{}; it is one of {}", Quoted(name),
                               nearest.empty() ? "" : fmt::format(" (did you mean {}?)", nearest), TypeNames()));
}

}  // namespace

int RunQuantize(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::string in, out;
  std::optional<std::string> type_name;
  bool pure = false;
  int n_threads = 0;
  line.AddPositional("IN", &in, "The model: a GGUF file with weights wider than the type, or a name in the cache");
  line.AddPositional("OUT", &out, "The GGUF file to write; it appears when it is whole");
  line.AddText("--type", "TYPE", &type_name, "What matrices become: " + TypeNames());
  line.AddFlag("--pure", &pure, "Embedding and output head become that type too, not one step wider");
  line.AddInt("-t,--threads", &n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.SetFooter(
      "Norms and biases stay as they are. Rows that blocks of 256 weights do not divide become Q5_0, Q5_1 or Q8_0\n"
      "instead of Q4_K, Q5_K or Q6_K.");
  if (!line.Parse(std::move(args))) return kGood;
  if (in.empty() || out.empty()) throw UsageError("IN and OUT are needed");
  if (!type_name) throw UsageError("--type is missing");
  const DType type = ParseType(*type_name);

  const std::filesystem::path in_path = ResolveModel(in);
  if (IsSameFile(in_path, out))
    throw Error("{}: IN and OUT are the same file; name another one for OUT", TerminalSafe(out));
  const GgufFile file = GgufFile::Open(in_path);
  const Model model = Model::FromGguf(file);
  const QuantizePlan plan = PlanTypes(file, model, type, pure);
  for (const std::string& note : plan.notes) Note("{}", note);

  OutputFile file_out(out);
  Team team(n_threads);
  WriteQuantized(
      file, plan.types, [&](size_t i) { return EncodeTensor(file, file.tensors()[i], plan.types[i], {}, team); },
      file_out);
  const uint64_t bytes = file_out.size();
  file_out.Commit();
  WriteOut(fmt::format("{}: {}, from {}\n", TerminalSafe(out), HumanBytes(static_cast<double>(bytes)),
                       HumanBytes(static_cast<double>(file.file_bytes()))));
  return kGood;
}

}  // namespace thermocline
