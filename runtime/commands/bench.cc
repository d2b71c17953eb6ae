#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/tokenizer.h"
#include "runtime/commands/commands.h"
#include "runtime/load.h"
#include "runtime/text_io.h"
#include "runtime/trace_file.h"

namespace thermocline {
namespace {

struct Test {
  int n_prompt, n_gen, n_depth;  // one of the first two is 0
};

struct Result {
  Test test;
  int n_threads;
  std::string test_time;  // UTC, ISO 8601
  std::vector<int64_t> samples_ns;

  double Average(const std::vector<double>& values) const {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }
  double Deviation(const std::vector<double>& values) const {
    if (values.size() < 2) return 0;
    double sum = 0;
    for (const double value : values) sum += (value - Average(values)) * (value - Average(values));
    return std::sqrt(sum / static_cast<double>(values.size() - 1));
  }
  std::vector<double> Nanoseconds() const { return {samples_ns.begin(), samples_ns.end()}; }
  std::vector<double> TokensPerSecond() const {
    std::vector<double> rates;
    for (const int64_t ns : samples_ns) rates.push_back(1e9 * (test.n_prompt + test.n_gen) / static_cast<double>(ns));
    return rates;
  }
};

struct About {  // the model and the machine, the same for all results
  std::string model_filename, model_type, cpu_info, isa;
  uint64_t model_size = 0, model_n_params = 0;
};

std::string NowUtc() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

// Feeds random tokens: no two prompts are the same, and nothing can be learnt from one run for the next.
class Feeder {
 public:
  Feeder(Engine& engine, const Tokenizer& tokenizer)
      : engine_(engine), tokenizer_(tokenizer), sequence_(engine.NewSequence()) {}
  ~Feeder() { engine_.FreeSequence(sequence_); }

  void Clear() { engine_.Truncate(sequence_, 0); }
  void Prompt(int n) {
    while (n > 0) {
      const int rows = std::min(n, kMaxBatchRows);
      Step(rows, RowKind::kPrompt, rows == n);
      n -= rows;
    }
  }
  void Generate(int n) {
    for (int i = 0; i < n; i++) Step(1, RowKind::kGenerated, true);
  }

 private:
  void Step(int rows, RowKind kind, bool logits) {
    batch_.clear();
    for (int i = 0; i < rows; i++) {
      const int position = engine_.Length(sequence_) + i;
      const TokenId token = position == 0 && tokenizer_.add_bos() ? tokenizer_.bos() : Random();
      batch_.push_back({token, sequence_, position, kind, logits && i + 1 == rows});
    }
    engine_.Step(batch_);
  }
  TokenId Random() { return static_cast<TokenId>(random_() % static_cast<uint64_t>(engine_.config().n_vocab)); }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  int sequence_;
  std::mt19937_64 random_{std::random_device{}()};
  Batch batch_;
};

Result RunTest(Engine& engine, const Tokenizer& tokenizer, const Test& test, int repetitions) {
  Feeder feeder(engine, tokenizer);
  Result result{test, engine.n_threads(), NowUtc(), {}};
  feeder.Prompt(test.n_prompt);  // a warm-up; of a generation one token will do
  feeder.Generate(std::min(test.n_gen, 1));
  for (int i = 0; i < repetitions; i++) {
    feeder.Clear();
    feeder.Prompt(test.n_depth);
    const auto start = std::chrono::steady_clock::now();
    feeder.Prompt(test.n_prompt);
    feeder.Generate(test.n_gen);
    const auto time = std::chrono::steady_clock::now() - start;
    result.samples_ns.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
  }
  return result;
}

nlohmann::ordered_json ToJson(const Result& result, const About& about) {
  const auto rates = result.TokensPerSecond(), times = result.Nanoseconds();
  return {
      {"build_version", THERMOCLINE_VERSION},
      {"cpu_info", about.cpu_info},
      {"backends", "CPU"},
      {"isa", about.isa},
      {"model_filename", about.model_filename},
      {"model_type", about.model_type},
      {"model_size", about.model_size},
      {"model_n_params", about.model_n_params},
      {"n_batch", kMaxBatchRows},
      {"n_threads", result.n_threads},
      {"type_k", "f16"},
      {"type_v", "f16"},
      {"n_prompt", result.test.n_prompt},
      {"n_gen", result.test.n_gen},
      {"n_depth", result.test.n_depth},
      {"test_time", result.test_time},
      {"avg_ns", std::llround(result.Average(times))},
      {"stddev_ns", std::llround(result.Deviation(times))},
      {"avg_ts", result.Average(rates)},
      {"stddev_ts", result.Deviation(rates)},
      {"samples_ns", result.samples_ns},
      {"samples_ts", rates},
  };
}

std::string TestName(const Test& test) {
  std::string name = test.n_prompt > 0 ? fmt::format("pp{}", test.n_prompt) : fmt::format("tg{}", test.n_gen);
  if (test.n_depth > 0) name += fmt::format(" @ d{}", test.n_depth);
  return name;
}

constexpr const char* kRow = "| {:<30} | {:>10} | {:>10} | {:<10} | {:>7} | {:>15} | {:>20} |\n";

std::string MarkdownHeader() {
  return fmt::format(kRow, "model", "size", "params", "backend", "threads", "test", "t/s") +
         fmt::format("| {:-<30} | {:->9}: | {:->9}: | {:-<10} | {:->6}: | {:->14}: | {:->19}: |\n", "", "", "", "", "",
                     "", "");
}

std::string MarkdownRow(const Result& result, const About& about) {
  const auto rates = result.TokensPerSecond();
  return fmt::format(kRow, about.model_type, fmt::format("{:.2f} MiB", static_cast<double>(about.model_size) / 0x1p20),
                     fmt::format("{:.2f} M", static_cast<double>(about.model_n_params) / 1e6), "CPU", result.n_threads,
                     TestName(result.test),
                     fmt::format("{:.2f} ± {:.2f}", result.Average(rates), result.Deviation(rates)));
}

About Describe(const GgufFile& file) {
  About about;
  about.model_filename = file.path();
  about.cpu_info = DetectTopology().cpu_name;
  about.isa = Name(ChooseIsa());
  std::map<DType, uint64_t> weights;
  for (const Tensor& tensor : file.tensors()) {
    const auto n = static_cast<uint64_t>(tensor.ne[0] * tensor.ne[1] * tensor.ne[2] * tensor.ne[3]);
    about.model_size += tensor.bytes;
    about.model_n_params += n;
    weights[tensor.type] += n;
  }
  const auto most = [](const auto& a, const auto& b) { return a.second < b.second; };
  const DType type = std::max_element(weights.begin(), weights.end(), most)->first;
  const double millions = static_cast<double>(about.model_n_params) / 1e6;
  about.model_type = fmt::format("{} {:.0f}M {}", file.GetString("general.architecture"), millions, Info(type).name);
  return about;
}

}  // namespace

int RunBench(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::vector<int> prompts = {512}, generations = {128}, depths = {0}, threads = {0};
  int repetitions = 5;
  std::optional<std::string> output;
  line.AddModel();
  line.AddIntList("-p,--n-prompt", &prompts, 0, kMaxContext, "Prefill of so many tokens; 0: none (512)");
  line.AddIntList("-n,--n-gen", &generations, 0, kMaxContext, "Decode of so many tokens; 0: none (128)");
  line.AddIntList("-d,--n-depth", &depths, 0, kMaxContext, "Tokens that the context holds before (0)");
  line.AddIntList("-t,--threads", &threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.AddInt("-r,--repetitions", &repetitions, 1, kMaxRepetitions, "Measurements per test (5)");
  line.AddText("-o,--output", "FORMAT", &output, "md or json (md)");
  TraceFile trace;
  trace.AddFlag(line);
  if (!line.Parse(std::move(args))) return kGood;
  const std::string format = output.value_or("md");
  if (format != "md" && format != "json") throw UsageError(fmt::format("--output: {} is neither md nor json", format));

  std::vector<Test> tests;
  for (const int depth : depths) {
    for (const int n : prompts) {
      if (n > 0) tests.push_back({n, 0, depth});
    }
    for (const int n : generations) {
      if (n > 0) tests.push_back({0, n, depth});
    }
  }
  if (tests.empty()) throw UsageError("nothing to measure: -p and -n are both 0");
  if (tests.size() > kMaxBenchTests) throw UsageError(fmt::format("more than {} tests", kMaxBenchTests));
  int n_ctx = 0;
  for (const Test& test : tests) n_ctx = std::max(n_ctx, test.n_depth + test.n_prompt + test.n_gen);

  trace.Open();
  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  const auto tokenizer = Tokenizer::FromGguf(file);
  const About about = Describe(file);
  const bool json = format == "json";
  WriteOut(json ? "[\n" : MarkdownHeader());
  bool first = true;
  for (const int n_threads : threads) {
    const auto engine = LoadEngine(file, model, n_ctx, n_threads, trace.tracer());
    for (const Test& test : tests) {
      const Result result = RunTest(*engine, *tokenizer, test, repetitions);
      if (json) {
        const auto text = ToJson(result, about).dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
        WriteOut((first ? "" : ",\n") + text);
      } else {
        WriteOut(MarkdownRow(result, about));
      }
      first = false;
    }
  }
  if (json) WriteOut("\n]\n");
  trace.Write();
  return kGood;
}

}  // namespace thermocline
