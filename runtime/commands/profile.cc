#include "runtime/profile.h"

#include <algorithm>
#include <array>

#include "cpu/team.h"
#include "models/error.h"
#include "models/hash.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "runtime/commands/commands.h"
#include "runtime/heat_report.h"
#include "runtime/load.h"
#include "runtime/output_file.h"
#include "runtime/text_io.h"
#include "runtime/threshold.h"

namespace thermocline {
namespace {

struct Request {
  std::optional<std::string> text, eval, out, report;
  std::vector<double> means;
  std::optional<double> max_rise;
  int n_threads = 0;
  bool calibrates() const { return !means.empty() || max_rise; }
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

// Ascending, each once.
std::vector<double> ParseShares(std::string_view text) {
  std::vector<double> shares;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    shares.push_back(ParseShare("--thresholds", text.substr(begin, end - begin)));
    if (std::ssize(shares) > kMaxHeatTargets)
      throw UsageError(fmt::format("--thresholds: more than {}", kMaxHeatTargets));
    begin = end + 1;
  }
  std::sort(shares.begin(), shares.end());
  shares.erase(std::unique(shares.begin(), shares.end()), shares.end());
  return shares;
}

// What is counted, what levels are chosen by, and what judges them.
struct Texts {
  std::vector<TokenId> tokens, eval;
  std::span<const TokenId> count, choose, judge;
};

Texts ReadTexts(const Tokenizer& tokenizer, const Request& request) {
  const auto read = [&](const std::string& path) {
    return tokenizer.Encode(ValidText(ReadText(path), path), {.add_bos_eos = true, .parse_special = false});
  };
  Texts texts;
  texts.tokens = read(*request.text);
  const std::span<const TokenId> all = texts.tokens;
  texts.count = all;
  if (!request.calibrates()) return texts;
  const size_t half = all.size() / 2;
  texts.count = all.first(half);
  texts.choose = all.subspan(half);
  if (request.eval) {
    texts.eval = read(*request.eval);
    texts.judge = texts.eval;
  } else {
    texts.judge = texts.choose.subspan(texts.choose.size() / 2);
    texts.choose = texts.choose.first(texts.choose.size() / 2);
  }
  return texts;
}

Heat Learn(const GgufFile& file, const Model& model, const Request& request, const std::filesystem::path& path) {
  const auto tokenizer = Tokenizer::FromGguf(file);
  const Texts texts = ReadTexts(*tokenizer, request);
  const std::filesystem::path part = PartPath(path);
  const auto save_part = [&](const Heat& now) { Save(part, SerializeHeat(now)); };
  Heat heat = BeginOrResume(file, model, texts.count, part);
  EngineOptions options{.n_ctx = std::min(kProfileContext, model.config.n_ctx_train), .n_threads = request.n_threads};
  auto engine = LoadEngine(file, model, options);
  CountNeurons(*engine, model, texts.count, save_part, heat);
  if (request.calibrates()) {
    save_part(heat);
    const std::array<uint64_t, 2> texts_hash = {TextHash(texts.choose), TextHash(texts.judge)};
    Hash hash;
    hash.Add({reinterpret_cast<const uint8_t*>(texts_hash.data()), sizeof texts_hash});
    if (heat.calibration_hash != hash.value()) {  // what an earlier run found out holds for other texts
      heat.sensitivity.clear();
      heat.thresholds.clear();
      heat.chosen_threshold = -1;
      heat.calibration_hash = hash.value();
    }
    const ThresholdRequest threshold{request.means, request.max_rise, engine->n_ctx()};
    const auto make_sparse = [&] {
      options.load.ffn = FfnMode::kThreshold;
      return LoadEngine(file, model, options);
    };
    CalibrateThresholds(model, *tokenizer, texts.choose, texts.judge, threshold, std::move(engine), make_sparse,
                        save_part, heat);
  }
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
  line.AddParsed(
      "--thresholds", "SHARE,...", [&](const std::string& text) { request.means = ParseShares(text); },
      "For --sparsity threshold: what leaving out these shares of neurons costs, as 0.25,0.4");
  line.AddParsed(
      "--max-rise", "PERCENT", [&](const std::string& text) { request.max_rise = ParsePercent("--max-rise", text); },
      "... and the largest share that raises perplexity by no more than this, as 1%");
  line.AddText("--eval", "FILE", &request.eval,
               "The unseen text that says what thresholds cost; without it, the last quarter of --text");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.SetFooter(
      "A run that was stopped goes on where it was: what it has counted stands in FILE.part, at most seconds behind.");
  if (!line.Parse(std::move(args))) return kGood;
  if (request.calibrates() && !request.text) throw UsageError("--thresholds and --max-rise need --text");
  if (request.eval && !request.calibrates()) throw UsageError("--eval belongs to --thresholds and --max-rise");
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
