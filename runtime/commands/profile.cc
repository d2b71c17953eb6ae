#include "runtime/profile.h"

#include <algorithm>
#include <array>

#include "cpu/team.h"
#include "models/error.h"
#include "models/hash.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "predictor/file_predictors.h"
#include "runtime/commands/commands.h"
#include "runtime/follow.h"
#include "runtime/heat_report.h"
#include "runtime/load.h"
#include "runtime/output_file.h"
#include "runtime/predictors.h"
#include "runtime/text_io.h"
#include "runtime/threshold.h"

namespace thermocline {
namespace {

struct Request {
  std::optional<std::string> text, eval, out, report, then;
  std::vector<double> means;
  std::optional<double> max_rise;
  int n_threads = 0;
  bool trains = false, evaluates = false;
  std::optional<double> recall;
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

std::vector<TokenId> ReadTokens(const Tokenizer& tokenizer, const std::string& path) {
  return tokenizer.Encode(ValidText(ReadText(path), path), {.add_bos_eos = true, .parse_special = false});
}

// What is counted, what levels are chosen by, and what judges them; predictors learn from all that does not judge.
struct Texts {
  std::vector<TokenId> tokens, eval;
  std::span<const TokenId> count, choose, judge, learn;
};

Texts ReadTexts(const Tokenizer& tokenizer, const Request& request) {
  Texts texts;
  texts.tokens = ReadTokens(tokenizer, *request.text);
  const std::span<const TokenId> all = texts.tokens;
  texts.count = all;
  if (!request.calibrates() && !request.trains) return texts;
  if (request.eval) texts.judge = texts.eval = ReadTokens(tokenizer, *request.eval);
  const size_t half = all.size() / 2, judged = request.eval ? 0 : (all.size() - half + 1) / 2;
  texts.learn = all.first(all.size() - judged);
  if (!request.eval) texts.judge = all.last(judged);
  texts.count = request.calibrates() ? texts.learn.first(half) : texts.learn;
  texts.choose = texts.learn.subspan(texts.count.size());
  return texts;
}

EngineOptions MakeOptions(const Model& model, const Request& request) {
  return {.n_ctx = std::min(kProfileContext, model.config.n_ctx_train), .n_threads = request.n_threads};
}

PredictorEngines MakeEngines(const GgufFile& file, const Model& model, const Request& request) {
  const EngineOptions options = MakeOptions(model, request);
  const auto predicted = [&file, &model, options](const HeatPredictors& predictors) {
    EngineOptions with = options;
    with.load.ffn = FfnMode::kPredicted;
    with.load.predictors = &predictors.layers;
    auto engine = LoadEngine(file, model, with);
    engine->SetNeuronLevels(predictors.firing_levels);
    return engine;
  };
  return {[&file, &model, options] { return LoadEngine(file, model, options); }, predicted};
}

// What `chat` has left in the file that is written anew.
RecentHeat RecentOf(const std::filesystem::path& path, const GgufFile& file, const ModelConfig& config) {
  try {
    return ReadHeat(path, file, config).recent;
  } catch (const Error&) {  // none, or not of this model any more
    return {};
  }
}

Heat Learn(const GgufFile& file, const Model& model, const Request& request, const std::filesystem::path& path) {
  const auto tokenizer = Tokenizer::FromGguf(file);
  const Texts texts = ReadTexts(*tokenizer, request);
  const std::filesystem::path part = PartPath(path);
  const auto save_part = [&](const Heat& now) { Save(part, SerializeHeat(now)); };
  Heat heat = BeginOrResume(file, model, texts.count, part);
  EngineOptions options = MakeOptions(model, request);
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
  if (request.trains) {
    save_part(heat);
    engine.reset();
    PredictorRequest predictors{.n_threads = request.n_threads};
    if (request.recall) predictors.recall = *request.recall;
    TrainPredictors(model, *tokenizer, texts.learn, texts.judge, predictors, MakeEngines(file, model, request),
                    save_part, heat);
  }
  heat.recent = RecentOf(path, file, model.config);
  Save(path, SerializeHeat(heat));
  std::filesystem::remove(part);
  return heat;
}

// On a text that did not train the predictors of the .heat file, or else those of the model's.
int Evaluate(const GgufFile& file, const Model& model, const Request& request, const std::filesystem::path& path) {
  Heat heat = ReadHeat(path, file, model.config);
  if (!heat.predictors.complete() && !model.predictors.empty())
    heat.predictors = ReadFilePredictors(file, model);
  else if (!heat.predictors.complete())
    throw Error("{}: no predictors in it; train them on another text than this one, with --train-predictors",
                path.string());
  const auto tokenizer = Tokenizer::FromGguf(file);
  const std::vector<TokenId> tokens = ReadTokens(*tokenizer, *request.text);
  WriteOut(DescribeEvaluation(EvaluatePredictors(model, *tokenizer, tokens, heat, MakeEngines(file, model, request))));
  return kGood;
}

// What the heat of one text is worth on another.
int Follow(const GgufFile& file, const Model& model, const Request& request) {
  const auto tokenizer = Tokenizer::FromGguf(file);
  const auto engine = LoadEngine(file, model, MakeOptions(model, request));
  WriteOut(DescribeFollowed(
      FollowTexts(file, model, *engine, ReadTokens(*tokenizer, *request.text), ReadTokens(*tokenizer, *request.then))));
  return kGood;
}

void CheckFlags(const Request& request) {
  const bool learns = request.calibrates() || request.trains;
  if ((learns || request.evaluates) && !request.text)
    throw UsageError("--thresholds, --max-rise, --train-predictors and --evaluate need --text");
  if (request.eval && !learns) throw UsageError("--eval belongs to --thresholds, --max-rise and --train-predictors");
  if (request.recall && !request.trains) throw UsageError("--recall belongs to --train-predictors");
  if (request.then && (!request.text || learns || request.evaluates || request.report || request.out))
    throw UsageError("--then writes no .heat file, and goes with --text alone");
  if (request.evaluates && (learns || request.report))
    throw UsageError("--evaluate says what predictors are worth, and goes with --text and -o alone");
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
  line.AddFlag("--train-predictors", &request.trains,
               "For --sparsity predicted: learn to tell before gates are read which neurons fire; with other "
               "activations than relu, those that --max-rise or --thresholds leaves in");
  line.AddParsed(
      "--recall", "PERCENT", [&](const std::string& text) { request.recall = ParsePercent("--recall", text); },
      "... and of those that fire, the share that must be found (95%)");
  line.AddText("--eval", "FILE", &request.eval,
               "The unseen text that says what thresholds and predictors cost; without it, the last quarter of --text");
  line.AddFlag("--evaluate", &request.evaluates,
               "What the predictors of the .heat file find on --text, which should be one they were not trained on");
  line.AddText("--then", "FILE", &request.then,
               "How well the heat of --text holds on this text, if it is kept, and if it follows as in chat --adapt");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.SetFooter(
      "A run that was stopped goes on where it was: what it has counted stands in FILE.part, at most seconds behind.");
  if (!line.Parse(std::move(args))) return kGood;
  CheckFlags(request);
  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  const std::filesystem::path path = request.out ? std::filesystem::path(*request.out) : HeatPath(file.path());
  if (request.evaluates) return Evaluate(file, model, request, path);
  if (request.then) return Follow(file, model, request);
  for (const auto& target : {std::optional(path.string()), request.report}) {
    if (!target) continue;
    if (IsSameFile(file.path(), *target) || (request.text && IsSameFile(*request.text, *target)))
      throw Error("{}: it would be overwritten; name another file", TerminalSafe(*target));
  }
  if (request.report && IsSameFile(path, *request.report))
    throw Error("{}: the .heat file and the report are the same file; name another one", TerminalSafe(*request.report));
  const Heat heat = request.text ? Learn(file, model, request, path) : ReadHeat(path, file, model.config);
  if (!heat.profiled())
    throw Error("{}: only what chat has learned, of {:.0f} tokens; profile the model with --text FILE", path.string(),
                heat.recent.tokens);
  WriteOut(DescribeHeat(heat));
  if (request.report) {
    const std::string page = HeatReport(heat);
    Save(*request.report, {reinterpret_cast<const uint8_t*>(page.data()), page.size()});
  }
  return kGood;
}

}  // namespace thermocline
