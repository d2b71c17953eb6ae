#include "runtime/profile.h"

#include "cpu/team.h"
#include "models/error.h"
#include "models/quoted.h"
#include "runtime/commands/commands.h"
#include "runtime/heat_report.h"
#include "runtime/load.h"
#include "runtime/output_file.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

struct Request {
  std::optional<std::string> text, out, report;
  int n_threads = 0;
};

void Save(const std::filesystem::path& path, std::span<const uint8_t> bytes) {
  OutputFile out(path);
  out.Write(bytes);
  out.Commit();
}

// Where the counts of an unfinished run stand.
std::filesystem::path PartPath(std::filesystem::path path) { return path += ".part"; }

// What an earlier run over the same text has counted, or a new heat.
Heat BeginOrResume(const GgufFile& file, const Model& model, std::span<const TokenId> tokens,
                   const std::filesystem::path& part) {
  Heat heat = BeginHeat(file, model, tokens);
  if (!std::filesystem::exists(part)) return heat;
  try {
    Heat earlier = ReadHeat(part, file, model.config);
    if (earlier.text_hash == heat.text_hash && earlier.targets == heat.targets &&
        earlier.n_tokens <= std::ssize(tokens)) {
      Note("going on where an earlier run stopped, at token {} of {}", earlier.n_tokens, tokens.size());
      return earlier;
    }
    Note("{}: of another text; beginning anew", TerminalSafe(part.string()));
  } catch (const Error& error) {
    Note("{}; beginning anew", TerminalSafe(error.what()));
  }
  return heat;
}

Heat Learn(const GgufFile& file, const Model& model, const Request& request, const std::filesystem::path& path) {
  const auto tokenizer = Tokenizer::FromGguf(file);
  const auto tokens = tokenizer->Encode(ValidText(ReadText(*request.text), *request.text),
                                        {.add_bos_eos = true, .parse_special = false});
  const std::filesystem::path part = PartPath(path);
  Heat heat = BeginOrResume(file, model, tokens, part);
  const auto engine = LoadEngine(
      file, model, {.n_ctx = std::min(kProfileContext, model.config.n_ctx_train), .n_threads = request.n_threads});
  CountNeurons(
      *engine, model, tokens, [&](const Heat& now) { Save(part, SerializeHeat(now)); }, heat);
  Save(path, SerializeHeat(heat));
  std::filesystem::remove(part);
  return heat;
}

}  // namespace

int RunProfile(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  Request request;
  line.AddModel();
  line.AddText("-f,--file,--text", "FILE", &request.text,
               "A text like those the model will meet; without one, the .heat file is only read");
  line.AddText("-o,--output", "FILE", &request.out, "The .heat file (beside the model, by its name)");
  line.AddText("--report", "FILE", &request.report, "An HTML page with the curves");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.SetFooter(
      "A run that was stopped goes on where it was: what it has counted stands in FILE.part, at most seconds behind.");
  if (!line.Parse(std::move(args))) return kGood;
  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  const std::filesystem::path path = request.out ? std::filesystem::path(*request.out) : HeatPath(file.path());
  for (const auto& target : {std::optional(path.string()), request.report}) {
    if (!target) continue;
    if (IsSameFile(file.path(), *target) || (request.text && IsSameFile(*request.text, *target)))
      throw Error("{}: it would be overwritten; name another file", TerminalSafe(*target));
  }
  if (request.report && IsSameFile(path, *request.report))
    throw Error("{}: the .heat file and the report are the same file; name another one", TerminalSafe(*request.report));
  const Heat heat = request.text ? Learn(file, model, request, path) : ReadHeat(path, file, model.config);
  WriteOut(DescribeHeat(heat));
  if (request.report) {
    const std::string page = HeatReport(heat);
    Save(*request.report, {reinterpret_cast<const uint8_t*>(page.data()), page.size()});
  }
  return kGood;
}

}  // namespace thermocline
