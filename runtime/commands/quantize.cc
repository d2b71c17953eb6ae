#include <cctype>
#include <charconv>
#include <map>

#include "cpu/team.h"
#include "models/error.h"
#include "models/quoted.h"
#include "predictor/heat_order.h"
#include "predictor/recent_heat.h"
#include "runtime/auto_quantize.h"
#include "runtime/calibration.h"
#include "runtime/catalog.h"
#include "runtime/commands/commands.h"
#include "runtime/layerwise.h"
#include "runtime/load.h"
#include "runtime/quantizer.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr int kCalibrationContext = 512;  // tokens; the perplexity of short and long contexts profits alike

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

struct Request {
  std::string in, out;
  std::optional<std::string> type, text, eval, heat;
  bool pure = false, automatic = false;
  double max_loss = 0.01;
  int n_threads = 0;
};

// False: help was asked for.
bool ParseRequest(const Command& command, std::vector<std::string> args, Request& request) {
  CommandLine line(command);
  std::optional<std::string> max_loss;
  line.AddPositional("IN", &request.in,
                     "The model: a GGUF file with weights wider than the type, or a name in the cache");
  line.AddPositional("OUT", &request.out, "The GGUF file to write; it appears when it is whole");
  line.AddText("--type", "TYPE", &request.type, "What matrices become: " + TypeNames());
  line.AddFlag("--pure", &request.pure, "Embedding and output head become that type too, not one step wider");
  line.AddText(
      "--text", "FILE", &request.text,
      "A text like those the model will meet, better of 30,000 tokens than of 8,000: what it does to the model "
      "decides which errors matter");
  line.AddText(
      "--heat", "FILE", &request.heat,
      "What `profile` learned of IN: neurons are written hottest first, so that a device can hold the first ones "
      "at no loss; OUT is then profiled anew");
  line.AddFlag("--auto", &request.automatic, "Find the smallest file within --max-loss; needs --text");
  line.AddText("--max-loss", "PERCENT", &max_loss, "How much higher perplexity on unseen text may be (1%)");
  line.AddText("--eval", "FILE", &request.eval, "The unseen text; without it, the second half of --text");
  line.AddInt("-t,--threads", &request.n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.SetFooter(
      "Norms and biases stay as they are. Rows that blocks of 256 weights do not divide become Q5_0, Q5_1 or Q8_0\n"
      "instead of Q4_K, Q5_K or Q6_K. With --text, each weight's rounding error is made up for by those after it, and "
      "what\nis left of them by the layers after its own.");
  if (!line.Parse(std::move(args))) return false;
  if (request.in.empty() || request.out.empty()) throw UsageError("IN and OUT are needed");
  if (!request.type && !request.automatic) throw UsageError("--type is missing, or --auto");
  if (request.automatic && (request.type || request.pure))
    throw UsageError("--auto chooses types: leave out --type and --pure");
  if (request.automatic && !request.text) throw UsageError("--auto needs --text");
  if (!request.automatic && (request.eval || max_loss)) throw UsageError("--eval and --max-loss belong to --auto");
  if (request.heat && (request.text || request.automatic))
    throw UsageError("--heat goes with --type alone: --text and --auto weigh columns in the order of IN");
  if (max_loss) request.max_loss = ParsePercent("--max-loss", *max_loss);
  return true;
}

std::vector<TokenId> ReadTokens(const Tokenizer& tokenizer, const std::string& path) {
  return tokenizer.Encode(ValidText(ReadText(path), path), {.add_bos_eos = true, .parse_special = false});
}

int Context(const Model& model) { return std::min(kCalibrationContext, model.config.n_ctx_train); }

// Whether the head is the embedding.
bool IsTied(const Model& model) {
  return model.program.ops.back().projections[0].weight == model.program.ops[0].weight;
}

Feedback EmbeddingFeedback(const Model& model, Engine& engine, std::span<const TokenId> tokens) {
  return FeedbackOfInputs(model, model.program.ops[0].weight, engine, tokens, engine.n_ctx());
}

void ShowTrial(const Trial& trial) {
  WriteOut(fmt::format("{:>10}  {:>10.4f}  {:>+8.2f} % +- {:<5.2f}  {:>8.5f}  {}\n",
                       HumanBytes(static_cast<double>(trial.file_bytes)), trial.judgement.perplexity,
                       100 * trial.judgement.loss, 100 * trial.judgement.loss_error, trial.judgement.kl, trial.recipe));
}

void WriteAuto(const GgufFile& file, const Model& model, const Request& request, OutputFile& out) {
  const auto tokenizer = Tokenizer::FromGguf(file);
  const int n_ctx = Context(model);
  std::vector<TokenId> text = ReadTokens(*tokenizer, *request.text), unseen;
  if (request.eval) {
    unseen = ReadTokens(*tokenizer, *request.eval);
  } else {
    unseen.assign(text.begin() + static_cast<std::ptrdiff_t>(text.size() / 2), text.end());
    text.resize(text.size() / 2);
  }
  for (const auto& tokens : {text, unseen})
    if (tokens.size() < static_cast<size_t>(n_ctx))
      throw Error("{} tokens to learn from and {} to judge by: each needs {}. Take a longer text.", text.size(),
                  unseen.size(), n_ctx);
  auto engine = LoadEngine(file, model, {.n_ctx = n_ctx, .n_threads = request.n_threads});
  // In prompt rows, roundings of activations to 8 bits would be blamed on the weights: a tenth of what may be lost.
  const Judge judge(*engine, *tokenizer, unseen, n_ctx, RowKind::kGenerated);
  std::optional<Feedback> embedding;
  if (IsTied(model)) embedding = EmbeddingFeedback(model, *engine, text);
  engine.reset();
  WriteOut(fmt::format("learned from {} tokens, judged by {} unseen predictions\n\n{:>10}  {:>10}  {:<19}  {:>8}  {}\n",
                       text.size(), judge.n_scored(), "file", "perplexity", "    loss", "KL", "recipe"));
  WriteOut(fmt::format("{:>10}  {:>10.4f}  {:<19}  {:>8}  {}\n", HumanBytes(static_cast<double>(file.file_bytes())),
                       judge.reference_perplexity(), "", "", "the source"));
  AutoQuantizer quantizer(
      file, model, embedding ? &*embedding : nullptr, text, judge,
      {.max_loss = request.max_loss, .n_ctx = n_ctx, .n_threads = request.n_threads, .on_trial = ShowTrial});
  const Encoding& found = quantizer.Search();
  WriteOut("\n");
  WriteQuantized(
      file, found.types, [&](size_t i) { return found.bytes[i]; }, out);
}

void WriteTyped(const GgufFile& file, const Model& model, const Request& request, DType type, OutputFile& out) {
  const QuantizePlan plan = PlanTypes(file, model, type, request.pure);
  for (const std::string& note : plan.notes) Note("{}", note);
  if (request.text) {
    const auto tokens = ReadTokens(*Tokenizer::FromGguf(file), *request.text);
    const int n_ctx = Context(model);
    if (tokens.empty()) throw Error("{}: there is no text in it to learn from", TerminalSafe(*request.text));
    std::optional<Feedback> embedding;
    if (IsTied(model))
      embedding =
          EmbeddingFeedback(model, *LoadEngine(file, model, {.n_ctx = n_ctx, .n_threads = request.n_threads}), tokens);
    Team team(request.n_threads);
    const auto encoded =
        EncodeLayerwise(file, model, plan.types, embedding ? &*embedding : nullptr, tokens, n_ctx, team);
    WriteQuantized(
        file, plan.types, [&](size_t i) { return encoded.bytes[i]; }, out);
    return;
  }
  std::map<const Tensor*, const Weight*> ordered;
  Model hottest_first;
  if (request.heat) {
    const Heat heat = ProfiledOrRecent(ReadHeat(*request.heat, file, model.config));
    hottest_first = Reorder(model, HottestFirst(model, heat, HeatOrder::kNeurons));
    for (const Weight& weight : hottest_first.weights)
      if (weight.rows || weight.columns) ordered[weight.tensor] = &weight;
  }
  Team team(request.n_threads);
  const auto encode = [&](size_t i) {
    const Tensor& tensor = file.tensors()[i];
    return EncodeTensor(file, tensor, plan.types[i], nullptr, team, ordered[&tensor]);
  };
  WriteQuantized(file, plan.types, encode, out, [&](size_t i) { return ordered.contains(&file.tensors()[i]); });
}

}  // namespace

int RunQuantize(const Command& command, std::vector<std::string> args) {
  Request request;
  if (!ParseRequest(command, std::move(args), request)) return kGood;
  const DType type = request.type ? ParseType(*request.type) : DType::kF32;
  const std::filesystem::path in = ResolveModel(request.in);
  if (IsSameFile(in, request.out))
    throw Error("{}: IN and OUT are the same file; name another one for OUT", TerminalSafe(request.out));
  for (const auto& text : {request.text, request.eval})
    if (text && IsSameFile(*text, request.out))
      throw Error("{}: the text and OUT are the same file; name another one for OUT", TerminalSafe(request.out));
  const GgufFile file = GgufFile::Open(in);
  const Model model = Model::FromGguf(file);
  if (file.powerinfer())
    throw Error("{} is one of PowerInfer's, whose FFNs stand transposed; quantize the model that it was made from",
                TerminalSafe(file.path()));
  OutputFile out(request.out);
  if (request.automatic)
    WriteAuto(file, model, request, out);
  else
    WriteTyped(file, model, request, type, out);
  const uint64_t bytes = out.size();
  out.Commit();
  WriteOut(fmt::format("{}: {}, from {}\n", TerminalSafe(request.out), HumanBytes(static_cast<double>(bytes)),
                       HumanBytes(static_cast<double>(file.file_bytes()))));
  return kGood;
}

}  // namespace thermocline
