#include "runtime/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/check.h"
#include "models/error.h"
#include "runtime/kv_cache.h"
#include "runtime/stream_rows.h"

namespace thermocline {
namespace {

// What a model leaves free for the rest of the program and its neighbours when the context is ours to choose.
constexpr int64_t kReservedBytes = int64_t{512} << 20;

// Steps of so many prompt rows, and of twice as many, are timed at load: a short one several times, since the first one
// meets cold caches.
constexpr int kTimedRows = 32, kTimedSteps = 3;
constexpr double kTimedSeconds = 0.2;

// The context asked for, or the largest that fits; Error when it does not fit.
int ChooseContext(const Model& model, const EngineOptions& options) {
  const ModelConfig& config = model.config;
  const int64_t device_bytes = options.device.device ? options.device.device->free_bytes() : 0;
  const int64_t available = DetectTopology().memory_available_bytes + device_bytes - CpuExecutor::WeightBytes(model);
  const auto bytes = [&](int n_ctx) { return KvBytes(config, options.kv_types, n_ctx) * options.max_sequences; };
  if (options.n_ctx > 0) {
    if (config.HasLearnedPositions() && options.n_ctx > config.n_ctx_train)
      throw Error(
          "a context of {} tokens is longer than the {} positions that the model has learned; choose a shorter one",
          options.n_ctx, config.n_ctx_train);
    if (bytes(options.n_ctx) > available)
      throw Error(
          "a context of {} tokens needs {} MB besides the weights, {} MB are free; choose a smaller one with -c",
          options.n_ctx, bytes(options.n_ctx) >> 20, std::max<int64_t>(0, available) >> 20);
    return options.n_ctx;
  }
  int n_ctx = std::min(kDefaultMaxContext, config.n_ctx_train);
  while (n_ctx > kPageTokens && bytes(n_ctx) > available - kReservedBytes) n_ctx -= kPageTokens;
  return n_ctx;
}

}  // namespace

struct Engine::Impl {
  Impl(const GgufFile& file, const Model& model, const EngineOptions& options);

  void Load(const GgufFile& file, const Model& model);
  void ChooseStreamedRows();
  double TimePrompt(int n_rows, bool streamed);
  void Step(const Batch& batch);
  void CollectSpans(const Batch& batch);
  StepView View();
  // The device's half beside the CPU's; false when the step was cancelled. Throws DeviceLost.
  bool RunHalves(const StepView& step);
  [[noreturn]] void LoseDevice(const std::string& because);
  // Goes on with the CPU alone.
  void Reload();
  GgufFile OpenAgain() const;
  void CheckSame(const GgufFile& file) const;
  void CollectFirings();
  bool Reorder(int layer, std::shared_ptr<const NeuronOrder> order, const std::atomic<bool>& stop);

  EngineOptions options;
  ModelConfig config;
  const int n_threads, n_threads_batch;
  std::optional<Team> own_team;
  Team& team;
  const int n_ctx;
  std::string path;
  uint64_t identity = 0;                  // of the file, where it may be needed again
  std::unique_ptr<Hybrid> hybrid;         // null: the CPU computes everything
  bool lost = false;                      // the device, and no Reload since
  int streamed_rows = INT_MAX;            // steps of so many rows, all of prompts, are streamed
  std::unique_ptr<CpuExecutor> executor;  // null only where a Reload failed, until one succeeds
  // The file as Reorder reads it, open from the first time on.
  struct Source {
    explicit Source(GgufFile opened) : file(std::move(opened)), model(Model::FromGguf(file)) {}
    GgufFile file;
    Model model;
  };
  std::unique_ptr<Source> source;
  Firings firings;                               // collected
  std::vector<std::vector<uint32_t>> cpu_fired;  // by layer, as they were when they were collected
  std::optional<KvCache> kv;
  std::vector<bool> in_use;  // by sequence
  std::function<void()> step_hook;
  std::vector<float> levels, predictor_levels;  // as SetNeuronLevels, SetPredictorLevels and SetAudit said
  int64_t audit_every = 0;
  std::atomic<bool> cancel{false};

  // The step at hand.
  std::vector<int32_t> tokens, positions, wanted;
  std::vector<uint8_t> prompt;
  std::vector<SpanView> spans;
  std::vector<int> span_sequence;
};

Engine::Impl::Impl(const GgufFile& file, const Model& model, const EngineOptions& options)
    : options(options),
      config(model.config),
      n_threads(options.n_threads > 0 ? options.n_threads : std::min(DetectTopology().DefaultThreads(), kMaxThreads)),
      n_threads_batch(options.n_threads_batch > 0 ? options.n_threads_batch : n_threads),
      team(options.team != nullptr ? *options.team : own_team.emplace(std::max(n_threads, n_threads_batch))),
      n_ctx(ChooseContext(model, options)),
      path(file.path()),
      in_use(options.max_sequences) {
  CHECK(team.size() >= std::max(n_threads, n_threads_batch));
  if (options.device.device) identity = file.Identity();
  Load(file, model);
  this->options.load.on_load = {};  // whoever watches has gone when the weights are loaded once more
}

void Engine::Impl::Load(const GgufFile& file, const Model& model) {
  const Isa isa = ChooseIsa();
  hybrid = Hybrid::Load(file, model, team, isa, options.device, options.kv_types,
                        {n_ctx, options.max_sequences, kMaxBatchRows, options.load.count_firings}, options.load);
  if (!hybrid && (options.device.device || lost)) {  // what was counted on the device's memory must fit without it
    EngineOptions without = options;
    without.device = {};
    without.n_ctx = n_ctx;
    ChooseContext(model, without);
  }
  // A half is not kept: the device's memory of the moment decides where the model is cut.
  if (hybrid) options.load.packed_file.clear();
  const KvLayout layout = hybrid ? hybrid->kv_layout() : KvLayout(config, options.kv_types);
  executor = std::make_unique<CpuExecutor>(file, hybrid ? hybrid->cpu_half() : model, team, isa, kMaxBatchRows,
                                           options.load, layout, options.tracer, hybrid ? &hybrid->side() : nullptr,
                                           hybrid ? hybrid->streamed_program() : nullptr);
  kv.emplace(config, layout, n_ctx, options.max_sequences, kMaxBatchRows, options.page_seed,
             hybrid ? hybrid->side().kv_memory() : std::array<uint64_t, kLayerKinds>{});
  cpu_fired.assign(static_cast<size_t>(config.n_layer), {});
  streamed_rows = INT_MAX;
  if (!hybrid || !hybrid->streamed_program()) return;
  if (options.device.stream.min_rows > 0)
    streamed_rows = options.device.stream.min_rows;
  else
    ChooseStreamedRows();
}

void Engine::Impl::ChooseStreamedRows() {
  if (n_ctx < 2 * kTimedRows) return;
  std::string said;
  try {
    const double with_cpu = TimePrompt(kTimedRows, false);
    const double streamed = TimePrompt(kTimedRows, true), twice = TimePrompt(2 * kTimedRows, true);
    streamed_rows = RowsToStream(kTimedRows, with_cpu, streamed, twice);
    said = fmt::format(
        "{} prompt rows take {:.0f} ms with the CPU; with its weights sent to the device {:.0f} ms, {} {:.0f} ms: ",
        kTimedRows, 1e3 * with_cpu, 1e3 * streamed, 2 * kTimedRows, 1e3 * twice);
    said += streamed_rows > kMaxBatchRows ? "none are sent" : fmt::format("sent for {} rows and more", streamed_rows);
  } catch (const SequencesLost&) {
    said = fmt::format("the device was lost ({}); the CPU computes everything", hybrid->LostBecause());
  }
  in_use[0] = false;
  if (options.device.on_note) options.device.on_note(said);
}

// Seconds of a step that leaves nothing behind.
double Engine::Impl::TimePrompt(int n_rows, bool streamed) {
  Batch batch;
  for (int i = 0; i < n_rows; ++i) batch.push_back({0, 0, i, RowKind::kPrompt, false});
  streamed_rows = streamed ? 1 : INT_MAX;
  in_use[0] = true;
  double least = INFINITY, sum = 0;
  for (int i = 0; i < kTimedSteps && sum < kTimedSeconds; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    Step(batch);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    kv->Truncate(0, 0);
    least = std::min(least, time.count());
    sum += time.count();
  }
  return least;
}

// Fails before anything has changed.
void Engine::Impl::CollectSpans(const Batch& batch) {
  CHECK(!batch.empty() && batch.size() <= kMaxBatchRows);
  tokens.clear();
  positions.clear();
  wanted.clear();
  prompt.clear();
  spans.clear();
  span_sequence.clear();
  for (const BatchRow& row : batch) {
    const int index = static_cast<int>(tokens.size());
    CHECK(row.sequence >= 0 && row.sequence < static_cast<int>(in_use.size()) && in_use[row.sequence]);
    CHECK(row.token >= 0 && row.token < config.n_vocab);
    if (span_sequence.empty() || span_sequence.back() != row.sequence) {
      CHECK(std::find(span_sequence.begin(), span_sequence.end(), row.sequence) == span_sequence.end());
      spans.push_back({index, 0, row.position, {}});
      span_sequence.push_back(row.sequence);
    }
    SpanView& span = spans.back();
    CHECK(row.position == kv->length(row.sequence) + span.n_rows);
    if (row.position >= n_ctx)
      throw Error("the context is full: {} tokens do not fit into {}; start anew or choose a larger one with -c",
                  row.position + 1, n_ctx);
    ++span.n_rows;
    tokens.push_back(row.token);
    positions.push_back(row.position);
    prompt.push_back(row.kind == RowKind::kPrompt);
    if (row.logits) wanted.push_back(index);
  }
}

Engine::Engine(const GgufFile& file, const Model& model, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(file, model, options)) {}

Engine::~Engine() = default;

const ModelConfig& Engine::config() const { return impl_->config; }
int Engine::n_ctx() const { return impl_->n_ctx; }
int Engine::n_threads() const { return impl_->n_threads; }
int Engine::n_threads_batch() const { return impl_->n_threads_batch; }
Team& Engine::team() { return impl_->team; }
KvTypes Engine::kv_types() const { return impl_->kv->layout().types; }
Placement Engine::placement() const { return impl_->hybrid ? impl_->hybrid->placement() : AllOnCpu(impl_->config); }

int Engine::NewSequence() {
  for (size_t i = 0; i < impl_->in_use.size(); ++i)
    if (!impl_->in_use[i]) {
      impl_->in_use[i] = true;
      return static_cast<int>(i);
    }
  throw Error("all {} sequences are in use", impl_->in_use.size());
}

void Engine::FreeSequence(int sequence) {
  CHECK(impl_->in_use[sequence]);
  impl_->kv->Truncate(sequence, 0);
  impl_->in_use[sequence] = false;
}

int Engine::PromptRows(int n_left) const {
  const int n = std::min(n_left, kMaxBatchRows);
  return n == n_left && n > 1 && n - 1 >= impl_->streamed_rows ? n - 1 : n;
}
int Engine::Length(int sequence) const { return impl_->kv->length(sequence); }
int Engine::Truncate(int sequence, int n) { return impl_->kv->Truncate(sequence, n); }

StepView Engine::Impl::View() {
  for (size_t i = 0; i < spans.size(); ++i) {
    kv->Reserve(span_sequence[i], spans[i].n_rows);
    for (int kind = 0; kind < kLayerKinds; ++kind) spans[i].pages[kind] = kv->Pages(span_sequence[i], kind);
  }
  const auto n_prompt = std::count(prompt.begin(), prompt.end(), 1), n_rows = std::ssize(prompt);
  return {tokens,
          positions,
          prompt,
          spans,
          wanted,
          n_prompt > 0 ? n_threads_batch : n_threads,
          n_prompt == n_rows && n_rows >= streamed_rows};
}

bool Engine::Impl::RunHalves(const StepView& step) {
  if (!hybrid) return executor->Run(step, cancel);
  DeviceSide& side = hybrid->side();
  side.Begin(step);
  bool finished = false;
  try {
    finished = executor->Run(step, cancel);
  } catch (...) {
    (void)side.End(false);
    throw;
  }
  if (!side.End(finished)) throw DeviceLost("{}", hybrid->LostBecause());
  return finished;
}

void Engine::Impl::LoseDevice(const std::string& because) {
  for (size_t i = 0; i < in_use.size(); ++i) kv->Truncate(static_cast<int>(i), 0);
  lost = true;
  throw SequencesLost("the device was lost ({}): this request failed; the next one runs on the CPU alone", because);
}

GgufFile Engine::Impl::OpenAgain() const {
  GgufFile file = options.reopen ? options.reopen() : GgufFile::Open(path);
  CheckSame(file);
  return file;
}

void Engine::Impl::CheckSame(const GgufFile& file) const {
  if (file.Identity() != identity)
    throw Error("{}: the file has changed since it was loaded, and more of it is needed; start anew", path);
}

void Engine::Impl::CollectFirings() {
  if (!options.load.count_firings || !executor) return;
  const auto n_layer = static_cast<size_t>(config.n_layer), n_ff = static_cast<size_t>(config.n_ff);
  std::vector<std::vector<uint32_t>> now(n_layer, std::vector<uint32_t>(n_ff));  // in the order that they stand in
  if (hybrid && !lost) {
    try {
      hybrid->side().AddFired(now);
    } catch (const DeviceError&) {  // the next step will say so
    }
  }
  firings.fired.resize(n_layer, std::vector<uint32_t>(n_ff));
  for (size_t layer = 0; layer < n_layer; ++layer) {
    const std::span<const uint32_t> fired = executor->fired(static_cast<int>(layer));
    std::vector<uint32_t>& before = cpu_fired[layer];
    before.resize(fired.size());
    for (size_t i = 0; i < fired.size(); ++i) now[layer][n_ff - fired.size() + i] += fired[i] - before[i];
    before.assign(fired.begin(), fired.end());
    const NeuronOrder* order = nullptr;
    if (hybrid && !hybrid->placement().orders.empty()) order = hybrid->placement().orders[layer].get();
    for (size_t i = 0; i < n_ff; ++i) firings.fired[layer][order ? (*order)[i] : i] += now[layer][i];
  }
}

bool Engine::Impl::Reorder(int layer, std::shared_ptr<const NeuronOrder> order, const std::atomic<bool>& stop) {
  CHECK(hybrid && !lost && order->size() == config.n_ff);
  if (!source) source = std::make_unique<Source>(OpenAgain());
  Placement placement = hybrid->placement();
  placement.orders.resize(placement.layers.size());
  placement.orders[layer] = order;
  const SplitModel split = Split(source->model, placement);
  std::optional<StagedFfn> cpu = executor->StageFfn(split.cpu, layer, stop);
  if (!cpu) return false;
  const std::optional<StagedDeviceFfn> device = hybrid->side().StageFfn(split.device, layer, ChooseIsa(), stop);
  if (!device) return false;
  source->file.CheckIntact();
  CheckSame(source->file);  // somebody may have written into it
  CollectFirings();         // which count in the order of before
  hybrid->side().ReplaceFfn(*device);
  executor->ReplaceFfn(std::move(*cpu));
  hybrid->SetOrder(layer, std::move(order));
  return true;
}

void Engine::Impl::Reload() {
  const GgufFile file = OpenAgain();
  CollectFirings();
  source.reset();
  executor.reset();
  hybrid.reset();
  options.device = {};
  Load(file, Model::FromGguf(file));
  if (!levels.empty()) executor->SetNeuronLevels(levels);
  if (!predictor_levels.empty()) executor->SetPredictorLevels(predictor_levels);
  executor->SetAudit(audit_every);
  lost = false;
}

void Engine::Impl::Step(const Batch& batch) {
  if (lost) Reload();
  CollectSpans(batch);
  firings.tokens += std::count(prompt.begin(), prompt.end(), 0);
  bool finished = false;
  try {
    finished = RunHalves(View());
  } catch (const DeviceError& error) {
    LoseDevice(error.what());
  }
  for (size_t i = 0; i < spans.size(); ++i) {
    const int sequence = span_sequence[i];
    if (finished)
      kv->Commit(sequence, spans[i].n_rows);
    else
      kv->Truncate(sequence, kv->length(sequence));
  }
  if (!finished) {
    cancel = false;
    throw Cancelled{};
  }
  if (step_hook) step_hook();
}

void Engine::Step(const Batch& batch) { impl_->Step(batch); }

std::span<const float> Engine::Logits(int i) const {
  CHECK(i >= 0 && i < static_cast<int>(impl_->wanted.size()));
  return impl_->executor->Logits(i);
}

void Engine::Cancel() { impl_->cancel = true; }
void Engine::SetStepHook(std::function<void()> hook) { impl_->step_hook = std::move(hook); }
void Engine::SetInputTap(InputTap tap) { impl_->executor->SetInputTap(std::move(tap)); }
void Engine::SetNeuronLevels(std::span<const float> levels) {
  impl_->levels.assign(levels.begin(), levels.end());
  if (impl_->executor) impl_->executor->SetNeuronLevels(levels);
  if (!impl_->hybrid || impl_->lost) return;
  try {
    impl_->hybrid->side().SetLevels(levels);
  } catch (const DeviceError&) {  // the next step will say so
  }
}
void Engine::SetPredictorLevels(std::span<const float> levels) {
  impl_->predictor_levels.assign(levels.begin(), levels.end());
  if (impl_->executor) impl_->executor->SetPredictorLevels(levels);
}
void Engine::SetAudit(int64_t every) {
  impl_->audit_every = every;
  if (impl_->executor) impl_->executor->SetAudit(every);
}
FfnAudit Engine::TakeAudit() { return impl_->executor ? impl_->executor->TakeAudit() : FfnAudit{}; }
Firings Engine::TakeFirings() {
  impl_->CollectFirings();
  return std::exchange(impl_->firings, {});
}
bool Engine::CanReorder() const {
  return impl_->hybrid && !impl_->lost && impl_->options.load.ffn != FfnMode::kPredicted;
}
bool Engine::Reorder(int layer, std::shared_ptr<const NeuronOrder> order, const std::atomic<bool>& stop) {
  return impl_->Reorder(layer, std::move(order), stop);
}
NeuronCount Engine::TakeNeuronCount() { return impl_->executor ? impl_->executor->TakeNeuronCount() : NeuronCount{}; }
int64_t Engine::weight_bytes() const { return impl_->executor->weight_bytes(); }
int64_t Engine::kv_bytes_in_use() const { return impl_->kv->bytes_in_use(); }
std::vector<std::pair<std::string, std::string>> Engine::Kernels() const { return impl_->executor->Kernels(); }

int64_t KvBytes(const ModelConfig& config, KvTypes types, int n_ctx) {
  return KvCache::BytesFor(config, types, n_ctx, kMaxBatchRows);
}
int64_t PackedWeightBytes(const Model& model) { return CpuExecutor::WeightBytes(model); }

}  // namespace thermocline
