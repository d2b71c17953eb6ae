#include "runtime/perplexity.h"

#include <nlohmann/json.hpp>

#include "cpu/team.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/tokenizer.h"
#include "runtime/commands/commands.h"
#include "runtime/device_flags.h"
#include "runtime/kv_types.h"
#include "runtime/load.h"
#include "runtime/sparsity.h"
#include "runtime/text_io.h"
#include "runtime/trace_file.h"

namespace thermocline {

int RunPerplexity(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::optional<std::string> path;
  int n_ctx = 512, n_threads = 0, chunks = -1;
  bool json = false, decode = false;
  line.AddModel();
  line.AddText("-f,--file,--text", "FILE", &path, "The text to score; - is standard input");
  line.AddInt("-c,--ctx-size,--ctx", &n_ctx, 4, kMaxContext, "Tokens per chunk; the second half is scored (512)");
  line.AddInt("--chunks", &chunks, -1, kMaxContext, "Chunks at most (-1: all)");
  line.AddInt("-t,--threads", &n_threads, 1, kMaxThreads, "Threads (one per physical core)");
  bool cache_packed = false;
  KvTypes kv_types;
  TraceFile trace;
  SparsityFlag sparsity;
  DeviceFlags device;
  AddKvTypes(line, &kv_types);
  line.AddFlag("--cache-packed", &cache_packed, kCachePackedHelp);
  sparsity.AddFlag(line);
  device.AddFlags(line);
  trace.AddFlag(line);
  line.AddFlag("--decode", &decode, "Score tokens as they are generated, one a step, not as a prompt");
  line.AddFlag("--json", &json, "Print the result as JSON, with the running value after each chunk");
  if (!line.Parse(std::move(args))) return kGood;
  if (!path) throw UsageError("--text is missing");
  sparsity.Check();
  device.Check();
  if (chunks == 0) throw UsageError("--chunks: 0 is out of range; it goes from 1, or is -1 for all");

  trace.Open();
  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  const auto tokenizer = Tokenizer::FromGguf(file);
  const std::string text = ValidText(*path == "-" ? ReadInput() : ReadText(*path), *path);
  const auto tokens = tokenizer->Encode(text, {.add_bos_eos = true, .parse_special = false});
  const LoadOptions load = sparsity.Choose(file, model);
  const auto engine = LoadEngine(file, model,
                                 {.n_ctx = n_ctx,
                                  .n_threads = n_threads,
                                  .kv_types = kv_types,
                                  .load = load,
                                  .tracer = trace.tracer(),
                                  .device = device.Open(file, model, load.ffn)},
                                 cache_packed);
  Note("{} tokens, {} chunks of {}", tokens.size(), tokens.size() / n_ctx, n_ctx);

  PerplexityOptions options{.n_ctx = n_ctx, .max_chunks = chunks};
  const auto audit = sparsity.Apply(*engine);
  if (decode || sparsity.changes_generated_rows()) options.kind = RowKind::kGenerated;
  if (decode) options.step_rows = 1;
  const auto result =
      MeasurePerplexity(*engine, *tokenizer, tokens, options, [](const PerplexityResult& now, int64_t n_chunks) {
        Note("[{}/{}] {:.4f}", now.running.size(), n_chunks, now.running.back());
      });
  trace.Write();
  if (const std::string said = DescribeNeurons(engine->TakeNeuronCount(), audit.get()); !said.empty()) Note("{}", said);
  if (json) {
    const nlohmann::ordered_json out = {
        {"perplexity", result.running.back()}, {"chunks", result.running}, {"tokens", result.tokens}};
    WriteOut(out.dump() + "\n");
  } else {
    WriteOut(fmt::format("{:.4f}\n", result.running.back()));
  }
  return kGood;
}

}  // namespace thermocline
