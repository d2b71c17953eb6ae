#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstring>
#include <ctime>
#include <random>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "models/tokenizer.h"
#include "runtime/bench_report.h"
#include "runtime/commands/commands.h"
#include "runtime/device_flags.h"
#include "runtime/kv_types.h"
#include "runtime/load.h"
#include "runtime/output_file.h"
#include "runtime/sparsity.h"
#include "runtime/text_io.h"
#include "runtime/trace_file.h"

namespace thermocline {
namespace {

// The bandwidth is measured over memory that no cache holds.
constexpr int64_t kMeasuredBytes = int64_t{2} << 30;

std::string NowUtc() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

// A process that does nothing but take the time of one CPU.
class BusyProcess {
 public:
  explicit BusyProcess(int cpu) : parent_(getpid()), pid_(fork()) {
    if (pid_ < 0) throw Error("cannot start a process to keep CPU {} busy: {}", cpu, std::strerror(errno));
    if (pid_ > 0) return;
    // In the child, where other threads may have held any lock: system calls only.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    // It must not inherit a real-time priority, with which it would not only take its share but everything.
    const sched_param ordinary{};
    sched_setscheduler(0, SCHED_OTHER, &ordinary);
    if (getppid() != parent_ || sched_setaffinity(0, sizeof set, &set) != 0) _exit(1);
    for (volatile int spin = 0;;) spin = spin + 1;
  }
  ~BusyProcess() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  BusyProcess(const BusyProcess&) = delete;

 private:
  pid_t parent_, pid_;
};

// Feeds random tokens to sequences of equal length: no two prompts are the same, and nothing can be learnt from one run
// for the next.
class Feeder {
 public:
  Feeder(Engine& engine, const Tokenizer& tokenizer, const Model& model, int n_sequences)
      : engine_(engine), tokenizer_(tokenizer), model_(model) {
    for (int i = 0; i < n_sequences; i++) sequences_.push_back(engine.NewSequence());
  }
  ~Feeder() {
    for (const int sequence : sequences_) engine_.FreeSequence(sequence);
  }

  void Clear() {
    for (const int sequence : sequences_) engine_.Truncate(sequence, 0);
  }
  // One sequence after the other.
  void Prompt(int n) {
    for (const int sequence : sequences_)
      for (int left = n, rows; left > 0; left -= rows) {
        rows = engine_.PromptRows(left);
        batch_.clear();
        AddRows(sequence, rows, RowKind::kPrompt, rows == left);
        engine_.Step(batch_);
      }
  }
  // A token of each sequence in every step.
  void Generate(int n) {
    for (int i = 0; i < n; i++) {
      batch_.clear();
      for (const int sequence : sequences_) AddRows(sequence, 1, RowKind::kGenerated, true);
      engine_.Step(batch_);
    }
  }
  // Of so many tokens of a prompt and then so many generated ones after what is there.
  Work Count(int n_prompt, int n_gen) const {
    Work work;
    int64_t length = engine_.Length(sequences_.front());
    const auto n_sequences = std::ssize(sequences_);
    const auto add = [&](int64_t rows, int64_t wanted, int64_t in_a_step) {
      const Work step = CountStep(model_, engine_.kv_types(), length, rows, wanted, in_a_step);
      work.bytes += step.bytes * (n_sequences / in_a_step);
      work.ops += step.ops * (n_sequences / in_a_step);
      length += rows;
    };
    for (int left = n_prompt; left > 0; left -= kMaxBatchRows)
      add(std::min(left, kMaxBatchRows), left <= kMaxBatchRows, 1);
    for (int i = 0; i < n_gen; i++) add(1, 1, n_sequences);
    return work;
  }

 private:
  // Wants the logits of the last one or of none.
  void AddRows(int sequence, int n, RowKind kind, bool logits) {
    for (int i = 0; i < n; i++) {
      const int position = engine_.Length(sequence) + i;
      const TokenId token = position == 0 && tokenizer_.add_bos() ? tokenizer_.bos() : Random();
      const bool wanted = logits && i + 1 == n;
      batch_.push_back({token, sequence, position, wanted ? RowKind::kGenerated : kind, wanted});
    }
  }
  TokenId Random() { return static_cast<TokenId>(random_() % static_cast<uint64_t>(engine_.config().n_vocab)); }

  Engine& engine_;
  const Tokenizer& tokenizer_;
  const Model& model_;
  std::vector<int> sequences_;
  std::mt19937_64 random_{std::random_device{}()};
  Batch batch_;
};

// The machine of a roofline. What memory gives is measured beside each repetition.
struct Machine {
  Machine(int n_threads, bool float_weights)
      : read(n_threads, std::min(kMeasuredBytes, DetectTopology().memory_available_bytes / 4)) {
    const Peak peak = MeasurePeak(ChooseIsa(), n_threads);
    ops_per_s = float_weights ? peak.f32 : std::max(peak.int8, peak.bf16);
  }
  ReadProbe read;
  double ops_per_s;
};

// machine: null, or what the result's roofs are of.
BenchResult RunTest(Engine& engine, const Tokenizer& tokenizer, const Model& model, const BenchTest& test,
                    int repetitions, std::optional<int> busy_cpu, Machine* machine) {
  Feeder feeder(engine, tokenizer, model, test.n_parallel);
  BenchResult result{test, engine.n_threads(), engine.kv_types(), NowUtc(), {}, busy_cpu, {}, {}};
  std::optional<BusyProcess> busy;
  if (busy_cpu) busy.emplace(*busy_cpu);
  double before = machine ? machine->read.Measure() : 0, read_gb_per_s = 0;
  feeder.Prompt(test.n_prompt);  // a warm-up; of a generation one token will do
  feeder.Generate(std::min(test.n_gen, 1));
  for (int i = 0; i < repetitions; i++) {
    feeder.Clear();
    feeder.Prompt(test.n_depth);
    if (i == 0) result.work = feeder.Count(test.n_prompt, test.n_gen);
    const auto start = std::chrono::steady_clock::now();
    feeder.Prompt(test.n_prompt);
    feeder.Generate(test.n_gen);
    const auto time = std::chrono::steady_clock::now() - start;
    result.samples_ns.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
    if (!machine) continue;
    const double after = machine->read.Measure();
    read_gb_per_s += (before + after) / 2 / repetitions;
    before = after;
  }
  if (machine) result.roofs = {engine.n_threads(), read_gb_per_s * 1e9, machine->ops_per_s};
  return result;
}

struct BenchOptions {
  std::vector<int> prompts = {512}, generations = {128}, depths = {0}, parallel = {1}, threads = {0};
  std::vector<DType> keys = {DType::kF16}, values = {DType::kF16};
  std::vector<std::string> pairs;
  int repetitions = 5;
  bool roofline = false, contended = false, cache_packed = false;
  std::optional<std::string> output, svg;
  SparsityFlag sparsity;
  DeviceFlags device;
};

void AddFlags(CommandLine& line, BenchOptions& options) {
  line.AddModel();
  line.AddIntList("-p,--n-prompt", &options.prompts, 0, kMaxContext, "Prefill of so many tokens; 0: none (512)");
  line.AddIntList("-n,--n-gen", &options.generations, 0, kMaxContext, "Decode of so many tokens; 0: none (128)");
  line.AddTextList("--pg", "PP,TG", &options.pairs, "Also -pg: prefill and then decode, as one test; may be repeated");
  line.AddIntList("-d,--n-depth", &options.depths, 0, kMaxContext, "Tokens that the context holds before (0)");
  AddKvTypeLists(line, &options.keys, &options.values);
  line.AddFlag("--cache-packed", &options.cache_packed, kCachePackedHelp);
  options.sparsity.AddFlag(line);
  options.device.AddFlags(line);
  line.AddIntList("-t,--threads", &options.threads, 1, kMaxThreads, "Threads (one per physical core)");
  line.AddInt("-r,--repetitions", &options.repetitions, 1, kMaxRepetitions, "Measurements per test (5)");
  line.AddIntList("--npl", &options.parallel, 1, kMaxBatchRows,
                  "Also -npl: decode so many sequences at once, one token of each per step (1)");
  line.AddText("-o,--output", "FORMAT", &options.output, "md, csv, json or jsonl (md)");
  line.AddFlag("--roofline", &options.roofline,
               "Measure the machine too, and say how near each test comes; FILE.svg behind it: also draw it");
  line.AddText("--roofline-svg", "FILE", &options.svg, "The same as --roofline FILE.svg, under any name");
  line.AddFlag("--contended", &options.contended, "Decode also with a busy process on each core in turn");
  line.SetFooter("Numbers may be lists and ranges: 128,512 or 128-512*2 or 0-4096+1024.");
}

// --roofline FILE.svg and --roofline=FILE.svg: a flag of this program has a value or has none, so the name moves.
void MoveSvg(std::vector<std::string>& args) {
  for (size_t i = 0; i < args.size(); i++) {
    if (args[i].starts_with("--roofline=")) args[i] = "--roofline-svg=" + args[i].substr(std::strlen("--roofline="));
    if (args[i] == "--roofline" && i + 1 < args.size() && args[i + 1].ends_with(".svg")) args[i] = "--roofline-svg";
  }
}

BenchTest ParsePair(const std::string& text, int depth) {
  BenchTest test{0, 0, depth};
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, test.n_prompt);
  if (first.ec == std::errc{} && first.ptr != end && *first.ptr == ',') {
    const auto second = std::from_chars(first.ptr + 1, end, test.n_gen);
    const auto fits = [](int n) { return n >= 0 && n <= kMaxContext; };
    if (second.ec == std::errc{} && second.ptr == end && fits(test.n_prompt) && fits(test.n_gen)) return test;
  }
  throw UsageError(
      fmt::format("-pg: {} is not two numbers like 512,128, each from 0 to {}", Quoted(text), kMaxContext));
}

std::vector<BenchTest> ListTests(const BenchOptions& options) {
  std::vector<BenchTest> tests;
  for (const int depth : options.depths) {
    for (const int n : options.prompts) tests.push_back({n, 0, depth});
    for (const int n : options.generations)
      for (const int n_parallel : options.parallel) tests.push_back({0, n, depth, n_parallel});
    for (const std::string& pair : options.pairs) tests.push_back(ParsePair(pair, depth));
    std::erase_if(tests, [](const BenchTest& test) { return test.n_tokens() == 0; });
    if (tests.size() > kMaxBenchTests) throw UsageError(fmt::format("more than {} tests", kMaxBenchTests));
  }
  if (tests.empty()) throw UsageError("nothing to measure: -p and -n are both 0");
  return tests;
}

std::vector<KvTypes> ListKvTypes(const BenchOptions& options) {
  std::vector<KvTypes> types;
  if (options.keys.size() * options.values.size() > kMaxBenchTests)
    throw UsageError(fmt::format("more than {} tests", kMaxBenchTests));
  for (const DType key : options.keys)
    for (const DType value : options.values) types.push_back({key, value});
  return types;
}

}  // namespace

int RunBench(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  BenchOptions options;
  TraceFile trace;
  AddFlags(line, options);
  trace.AddFlag(line);
  MoveSvg(args);
  if (!line.Parse(std::move(args))) return kGood;
  const std::vector<BenchTest> tests = ListTests(options);
  const std::vector<KvTypes> all_kv_types = ListKvTypes(options);
  options.sparsity.Check();
  options.device.Check();
  options.roofline |= options.svg.has_value();
  BenchAbout about;
  const auto format = MakeBenchFormat(options.output.value_or("md"), about, options.roofline);
  if (!format) throw UsageError(fmt::format("--output: {} is none of md, csv, json, jsonl", Quoted(*options.output)));
  if (options.svg) const OutputFile probe(*options.svg);  // before anything long begins
  trace.Open();

  const GgufFile file = GgufFile::Open(line.ModelPath());
  const Model model = Model::FromGguf(file);
  const LoadOptions load = options.sparsity.Choose(file, model);
  const auto tokenizer = Tokenizer::FromGguf(file);
  about = DescribeBench(file);
  int n_ctx = 0, n_sequences = 0;
  for (const BenchTest& test : tests) {
    n_ctx = std::max(n_ctx, test.context());
    n_sequences = std::max(n_sequences, test.n_parallel);
  }
  std::vector<int> busy_cpus;
  if (options.contended) busy_cpus = DetectTopology().team_cpus;
  std::vector<BenchResult> results;
  WriteOut(format->Begin());
  for (const int n_threads : options.threads) {
    std::optional<Machine> machine;
    if (options.roofline) machine.emplace(Team(n_threads).size(), about.float_weights);
    for (const KvTypes kv_types : all_kv_types) {
      const DeviceOptions device = options.device.Open(file, model, load.ffn);
      const auto engine = LoadEngine(file, model,
                                     {.n_ctx = n_ctx,
                                      .n_threads = n_threads,
                                      .max_sequences = n_sequences,
                                      .kv_types = kv_types,
                                      .load = load,
                                      .tracer = trace.tracer(),
                                      .device = device},
                                     options.cache_packed);
      const bool hybrid = UsesDevice(engine->placement());
      if (hybrid && options.roofline) throw Error("--roofline knows the CPU's limits alone; add --gpu off");
      about.backends = hybrid ? fmt::format("CPU, {}", device.device->name()) : "CPU";
      const auto audit = options.sparsity.Apply(*engine);
      std::optional<Roofs> roofs;  // of the last test with all cores free
      const auto measure = [&](const BenchTest& test, std::optional<int> busy_cpu) {
        results.push_back(RunTest(*engine, *tokenizer, model, test, options.repetitions, busy_cpu,
                                  machine && !busy_cpu ? &*machine : nullptr));
        if (busy_cpu)
          results.back().roofs = roofs;
        else
          roofs = results.back().roofs;
        WriteOut(format->Row(results.back()));
      };
      for (const BenchTest& test : tests) {
        measure(test, std::nullopt);
        if (test.n_prompt > 0) continue;
        for (const int cpu : busy_cpus) measure(test, cpu);
      }
      if (const std::string said = DescribeNeurons(engine->TakeNeuronCount(), audit.get()); !said.empty())
        Note("{}", said);
    }
  }
  WriteOut(format->End());
  trace.Write();
  if (options.svg) {
    OutputFile svg(*options.svg);
    const std::string text = RooflineSvg(results, about);
    svg.Write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    svg.Commit();
  }
  return kGood;
}

}  // namespace thermocline
