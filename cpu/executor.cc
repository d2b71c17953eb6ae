#include "cpu/executor.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>

#include "cpu/activations.h"
#include "cpu/attention.h"
#include "cpu/buffer.h"
#include "cpu/float_linear.h"
#include "cpu/linear.h"
#include "cpu/panel_chunks.h"
#include "cpu/panel_copy.h"
#include "cpu/plan.h"
#include "cpu/sparse_ffn.h"
#include "cpu/trace_stages.h"
#include "cpu/vector_ops.h"
#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

// Up to this many rows a stage over rows is cheaper on one member, inside the barrier, than shared out.
constexpr int64_t kSerialRows = 2;
// Of the next product, in share of L2: more would push out what is needed before. On a Xeon with 2 MiB, steps of the
// 1.1B and of SmolLM2 take 1.2 and 1.3 % less time with it.
constexpr int64_t kReadAheadPartOfL2 = 8;

// What of a weight is ours: rows [first_row, first_row + n), columns from first_k on.
struct Part {
  int64_t n, first_row, first_k;
};

// A list of ops and the stages that it became, which refer to its ops.
struct Plan {
  Program program;
  std::vector<Stage> stages;
  std::optional<StageTracer> trace;
};

// One kind of rotation.
struct RopeTable {
  const Op* op;                   // the first that has it
  std::vector<double> frequency;  // (rope_dims / 2)
};

}  // namespace

struct CpuExecutor::Impl {
  Impl(const GgufFile& file, const Model& model, Team& team, Isa isa, int max_rows, const LoadOptions& load,
       const KvLayout& kv_layout, Tracer* tracer, Peer* peer, const Program* streamed);

  void MakeKernels();
  void SetStages();
  void AllocateSlots(int max_rows);
  void CollectRopes();
  int RopeOf(const Op& op) const;

  void RunMember(Team::Member& member);
  size_t FindProduct(size_t stage) const {
    while (stage < plan->stages.size() && plan->stages[stage].kind != Stage::Kind::kLinear) ++stage;
    return stage;
  }
  // The small stages over rows from `stage` on; checks for cancellation.
  void RunSerialFrom(size_t stage, int member);
  bool IsSerial(const Stage& stage) const { return stage.kind == Stage::Kind::kRows && Rows(stage) <= kSerialRows; }
  int64_t Rows(const Stage& stage) const { return stage.wanted_rows ? step->wanted.size() : step->tokens.size(); }
  void RunRow(const Stage& stage, int64_t row);
  void RunTask(RowTask task, const Op* op, bool wanted, int64_t row);
  template <typename Then>
  void RunLinear(Team::Member& member, const Stage& stage, const Then& then);
  template <typename Then>
  void RunProjections(Team::Member& member, const Op& op, int n_projections, int64_t n_rows, const Then& then);
  template <typename Then>
  void RunSparseLinear(Team::Member& member, const Op& op, const Bundles& bundles, const Then& then);
  PanelChunks ChunksOf(const Op& op, int n_projections, int64_t n_rows) const;
  std::span<const uint8_t> FirstBytes(const Stage& stage, const Team::Member& member) const;  // of a product
  // Of rows [first_row, first_row + n_rows) and panels [begin, end).
  void ProjectPanels(const Op& op, const Projection& projection, int member, int64_t begin, int64_t end,
                     int64_t first_row, int64_t n_rows);
  void Quantize(const Op& op, bool wanted, int64_t row);
  void Receive(const Op& op, int64_t row);
  template <typename Then>
  void SendPanels(Team::Member& member, const Op& op, const Then& then);
  void FillRopeTables(int64_t row);
  void StoreKv(const Op& op, int64_t row);

  float* Row(Slot slot, int64_t row) const { return slots[Index(slot)].as<float>() + row * Stride(slot); }
  int64_t Stride(Slot slot) const { return strides[Index(slot)]; }
  SlotRows Rows(Slot slot, int64_t first = 0) const { return {Row(slot, 0) + first, Stride(slot)}; }
  int Width(Slot slot) const { return plans[0].program.width[Index(slot)]; }
  static size_t Index(Slot slot) { return static_cast<size_t>(slot); }
  PromptForm FormOf(const Op& op) const { return PromptFormFor(isa, op.wanted_rows ? kAllGroups : op.large_group); }
  const PackedMatrix& Matrix(WeightId id) const { return weights.matrix(id); }
  const float* Vector(WeightId id) const { return weights.vector(id); }
  uint8_t* Quantized(int64_t row, int64_t k) const { return quantized.data() + row * ActivationRowBytes(k); }

  ModelConfig config;
  std::array<Plan, 2> plans;  // the second may be empty
  Team& team;
  const Isa isa;
  const VectorOps& ops;
  KvLayout layout;
  Weights weights;
  std::map<DType, LinearKernel> kernels;
  SparseFfn sparse_ffn;
  FloatLinear float_linear;
  InputTap tap;
  std::vector<RopeTable> ropes;
  std::array<Buffer, static_cast<size_t>(Slot::kCount)> slots;
  std::array<int64_t, static_cast<size_t>(Slot::kCount)> strides{};
  Buffer quantized;    // (rows) of ActivationRowBytes(K of the op at hand)
  Buffer rope_values;  // (ropes, max_rows, rope_dims)
  Attention attention;
  const int max_rows;
  const int64_t read_ahead_bytes = std::max(0L, sysconf(_SC_LEVEL2_CACHE_SIZE)) / kReadAheadPartOfL2;
  Peer* const peer;
  std::vector<Part> parts;  // by WeightId

  Plan* plan = &plans[0];  // of the last step
  const StepView* step = nullptr;
  std::vector<int32_t> span_of_row;
  const std::atomic<bool>* cancel = nullptr;
  std::atomic<bool> peer_lost = false;
  std::atomic<bool> stopped = false;  // set once, by a `then`; late members read it without waiting
};

CpuExecutor::Impl::Impl(const GgufFile& file, const Model& model, Team& team, Isa isa, int max_rows,
                        const LoadOptions& load, const KvLayout& kv_layout, Tracer* tracer, Peer* peer,
                        const Program* streamed)
    : config(model.config),
      plans{Plan{model.program, {}, {}}, Plan{streamed ? *streamed : Program{}, {}, {}}},
      team(team),
      isa(isa),
      ops(VectorOpsFor(isa)),
      layout(kv_layout),
      weights(file, model, team, isa, load),
      sparse_ffn(weights, model, isa, load, max_rows, team.size()),
      float_linear(ops, team.size()),
      attention(ops, config, layout, max_rows, team.size()),
      max_rows(max_rows),
      peer(peer),
      span_of_row(max_rows) {
  for (const Weight& weight : model.weights) parts.push_back({weight.n, weight.first_row, weight.first_k});
  MakeKernels();
  SetStages();
  AllocateSlots(max_rows);
  CollectRopes();
  for (Plan& each : plans)
    if (tracer && !each.program.ops.empty()) each.trace.emplace(*tracer, team.size(), model, layout.types, each.stages);
}

void CpuExecutor::Impl::MakeKernels() {
  for (const PackedMatrix& matrix : weights.matrices()) {
    if (matrix.bytes() == 0) continue;
    if (matrix.format())
      kernels.try_emplace(matrix.type(), isa, *matrix.format());
    else
      float_linear.Prepare(matrix.k());
  }
}

void CpuExecutor::Impl::SetStages() {
  const auto needs_quantize = [this](const Op& op) {
    if (sparse_ffn.Find(op)) return true;
    for (int i = 0; i < op.n_projections; ++i)
      if (Matrix(op.projections[i].weight).format()) return true;
    return false;
  };
  for (Plan& each : plans) each.stages = MakeStages(each.program, needs_quantize, static_cast<bool>(tap));
}

void CpuExecutor::Impl::AllocateSlots(int max_rows) {
  for (size_t i = 0; i < slots.size(); ++i) {
    // An odd number of lines: then the same columns of many rows do not fall into the same sets of a cache.
    strides[i] = ((Width(static_cast<Slot>(i)) + kPanelRows - 1) / kPanelRows | 1) * kPanelRows;
    slots[i] = Buffer(strides[i] * max_rows * sizeof(float), "one step");
  }
  int64_t k = 1;
  for (const Op& op : plans[0].program.ops)
    if (op.kind == OpKind::kLinear) k = std::max<int64_t>(k, Width(op.in));
  quantized = Buffer(max_rows * ActivationRowBytes(k), "one step");
}

void CpuExecutor::Impl::CollectRopes() {
  for (const Op& op : plans[0].program.ops) {
    if (op.kind != OpKind::kRope || RopeOf(op) >= 0) continue;
    ropes.push_back({&op, RopeFrequencies(config, op, op.rope_factors >= 0 ? Vector(op.rope_factors) : nullptr)});
  }
  rope_values = Buffer(static_cast<int64_t>(ropes.size()) * max_rows * config.rope_dims * sizeof(float), "one step");
}

int CpuExecutor::Impl::RopeOf(const Op& op) const {
  for (size_t i = 0; i < ropes.size(); ++i)
    if (SameFrequencies(*ropes[i].op, op)) return static_cast<int>(i);
  return -1;
}

void CpuExecutor::Impl::RunMember(Team::Member& member) {
  const std::vector<Stage>& stages = plan->stages;
  const bool few_rows = std::ssize(step->tokens) <= kFewChunkRows;
  size_t ahead = 0;  // the stage of which something is read ahead
  for (size_t i = 0; i < stages.size() && !stopped; ++i) {
    const Stage& stage = stages[i];
    if (IsSerial(stage)) continue;  // ran behind the stage in front
    const auto then = [&, i] {
      if (stage.raises >= 0) peer->Raise(stage.raises);
      RunSerialFrom(i + 1, member.index());
    };
    if (few_rows) {
      const size_t next = FindProduct(i + 1);
      if (next != ahead && next < stages.size()) member.ReadAhead(FirstBytes(stages[ahead = next], member));
    }
    if (plan->trace) member.set_track(&plan->trace->Begin(member.index(), i));
    switch (stage.kind) {
      case Stage::Kind::kRows: {
        const int64_t grain = std::clamp<int64_t>(Rows(stage) / (4 * team.size()), 1, 16);
        member.For(
            Rows(stage), grain,
            [&](int64_t begin, int64_t end) {
              for (int64_t row = begin; row < end; ++row) RunRow(stage, row);
            },
            then);
        break;
      }
      case Stage::Kind::kLinear: RunLinear(member, stage, then); break;
      case Stage::Kind::kSendPanels: SendPanels(member, *stage.op, then); break;
      case Stage::Kind::kAttention: {
        const Op& op = *stage.op;
        attention.Run(member,
                      {Row(Slot::kQuery, 0), Stride(Slot::kQuery), Row(op.out, 0), Stride(op.out), op.window, op.scale,
                       layout.layers[op.layer], op.first_token, op.end_token, op.kind == OpKind::kAttentionState},
                      then);
        break;
      }
    }
  }
}

void CpuExecutor::Impl::RunSerialFrom(size_t stage, int member) {
  const std::vector<Stage>& stages = plan->stages;
  std::optional<StageTracer>& trace = plan->trace;
  const auto stops = [this] {
    if (!cancel->load(std::memory_order_relaxed) && !peer_lost.load(std::memory_order_relaxed)) return false;
    stopped = true;
    return true;
  };
  if (stops()) return;
  for (; stage < stages.size() && IsSerial(stages[stage]); ++stage) {
    const int64_t begin_ns = trace ? TraceTrack::Now() : 0;
    for (int64_t row = 0; row < Rows(stages[stage]); ++row) RunRow(stages[stage], row);
    if (stages[stage].raises >= 0) peer->Raise(stages[stage].raises);
    if (trace) trace->Begin(member, stage).Work(begin_ns, 1, 1);
    if (peer && stops()) return;
  }
}

void CpuExecutor::Impl::RunRow(const Stage& stage, int64_t row) {
  for (const Stage::Task& task : stage.tasks) RunTask(task.task, task.op, stage.wanted_rows, row);
}

void CpuExecutor::Impl::RunTask(RowTask task, const Op* op, bool wanted, int64_t row) {
  switch (task) {
    case RowTask::kRopeTables: FillRopeTables(row); break;
    case RowTask::kEmbed: {
      float* out = Row(op->out, row);
      Matrix(op->weight).DequantizeRow(step->tokens[row], out);
      if (op->scale != 1)
        for (int i = 0; i < Width(op->out); ++i) out[i] *= op->scale;
      if (op->positions >= 0) {
        float* place = Row(Slot::kNormed, row);  // which nothing has written yet
        Matrix(op->positions).DequantizeRow(step->positions[row] + op->position_offset, place);
        ops.add(place, Width(op->out), out);
      }
      break;
    }
    case RowTask::kNorm: {
      // The first op over wanted rows gathers them.
      const bool gathers = wanted && op->in == Slot::kHidden;
      const float* in = Row(op->in, gathers ? step->wanted[row] : row);
      const float* weight = Vector(op->weight);
      if (op->bias >= 0)
        ops.layer_norm(in, weight, Vector(op->bias), config.norm_eps, Width(op->in), Row(op->out, row));
      else
        ops.rms_norm(in, weight, config.norm_eps, Width(op->in), op->accumulate, Row(op->out, row));
      break;
    }
    case RowTask::kHeadNorm:
      for (int i = 0; i < Width(op->out); i += config.head_dim) {
        float* head = Row(op->out, row) + i;
        ops.rms_norm(head, Vector(op->weight), config.norm_eps, config.head_dim, false, head);
      }
      break;
    case RowTask::kRope: {
      const float* values = rope_values.as<float>() + (int64_t{RopeOf(*op)} * max_rows + row) * config.rope_dims;
      for (int i = 0; i < Width(op->out); i += config.head_dim)
        ops.rope(Row(op->out, row) + i, values, config.rope_dims, op->rope);
      break;
    }
    case RowTask::kStoreKv: StoreKv(*op, row); break;
    case RowTask::kGatedAct:
      if (sparse_ffn.Find(*op) && !step->prompt[row]) {  // up belongs to the product with down
        float* gate = Row(op->in, row) + op->begin;
        ops.act(gate, op->end - op->begin, op->activation, gate);
        break;
      }
      ops.gated_act(Row(op->in, row) + op->begin, Row(Slot::kUp, row) + op->begin, op->end - op->begin, op->activation,
                    Row(op->out, row) + op->begin);
      break;
    case RowTask::kAct:
      ops.act(Row(op->in, row) + op->begin, op->end - op->begin, op->activation, Row(op->out, row) + op->begin);
      break;
    case RowTask::kQuantize: Quantize(*op, wanted, row); break;
    case RowTask::kTap: tap(*op, row, {Row(op->in, row), static_cast<size_t>(Width(op->in))}); break;
    case RowTask::kBias:
      for (int i = 0; i < op->n_projections; ++i)
        if (const WeightId bias = op->projections[i].bias; bias >= 0)
          ops.add(Vector(bias), static_cast<int>(parts[bias].n),
                  Row(op->projections[i].out, row) + parts[bias].first_row);
      break;
    case RowTask::kSend: std::copy_n(Row(op->in, row), Width(op->in), peer->Rows(op->channel).Row(row)); break;
    case RowTask::kReceive: Receive(*op, row); break;
    case RowTask::kAdd: ops.add(Row(op->in, row), Width(op->out), Row(op->out, row)); break;
    case RowTask::kMergeStates:
      MergeStates(ops, config.n_head, config.head_dim, Row(Slot::kOtherState, row), Row(op->in, row),
                  Row(op->out, row));
      break;
  }
}

void CpuExecutor::Impl::Quantize(const Op& op, bool wanted, int64_t row) {
  const Bundles* bundles = sparse_ffn.Find(op);
  const bool generated = bundles && !step->prompt[row];
  float* x = Row(op.in, row);
  int64_t k = Width(op.in);
  if (op.in == Slot::kGate) {
    if (generated) return;
    const WeightId down = op.projections[0].weight;
    const int64_t first = bundles ? op.begin : parts[down].first_k;
    k = bundles ? bundles->shape().n_ff : Matrix(down).k();
    std::fill(x + first, x + op.begin, 0.f);  // neurons of the other half in a packed block of ours
    x += first;
  }
  const bool prompt = !wanted && step->prompt[row];
  if (prompt && FormOf(op) == PromptForm::kBf16) return RoundToBf16(x, k, Quantized(row, k));
  ops.quantize(x, k, prompt ? op.large_group : kAllGroups, Quantized(row, k));
  if (generated) sparse_ffn.KeepInput(*bundles, row, Quantized(row, k));
}

void CpuExecutor::Impl::Receive(const Op& op, int64_t row) {
  if (!peer->Await(op.channel)) {
    peer_lost = true;
    return;
  }
  if (op.out == Slot::kLogits) return;  // which are read where they arrive
  std::copy_n(peer->Rows(op.channel).Row(row), Width(op.out), Row(op.out, row));
}

template <typename Then>
void CpuExecutor::Impl::SendPanels(Team::Member& member, const Op& op, const Then& then) {
  const PanelCopy copy(weights, op);
  member.For(
      copy.n_units(), 1,
      [&](int64_t begin, int64_t end) {
        uint8_t* out = peer->Panels(op.channel);
        if (!out) peer_lost = true;
        for (int64_t unit = begin; out && unit < end; ++unit) copy.Copy(unit, out);
      },
      [&] {
        peer->RaisePanels(op.channel);
        then();
      });
}

void CpuExecutor::Impl::FillRopeTables(int64_t row) {
  for (size_t i = 0; i < ropes.size(); ++i) {
    float* out = rope_values.as<float>() + (static_cast<int64_t>(i) * max_rows + row) * config.rope_dims;
    for (const double frequency : ropes[i].frequency) {
      const double angle = step->positions[row] * frequency;
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
  }
}

void CpuExecutor::Impl::StoreKv(const Op& op, int64_t row) {
  const KvLayout::Layer& layer = layout.layers[op.layer];
  const SpanView& span = step->spans[span_of_row[row]];
  const int position = step->positions[row];
  if (position < op.first_token || position >= op.end_token) return;
  uint8_t* page = span.pages[layer.kind][position / kPageTokens] + layer.offset_bytes;
  for (int head = 0; head < config.n_head_kv; ++head)
    ops.store_kv(layout.types, Row(Slot::kKey, row) + head * config.head_dim,
                 Row(Slot::kValue, row) + head * config.head_dim, config.head_dim, position % kPageTokens,
                 page + head * layout.head_bytes);
}

template <typename Then>
void CpuExecutor::Impl::RunLinear(Team::Member& member, const Stage& stage, const Then& then) {
  const Op& op = *stage.op;
  if (const Bundles* bundles = sparse_ffn.Find(op))
    RunSparseLinear(member, op, *bundles, then);
  else
    RunProjections(member, op, op.n_projections, Rows(stage), then);
}

template <typename Then>
void CpuExecutor::Impl::RunSparseLinear(Team::Member& member, const Op& op, const Bundles& bundles, const Then& then) {
  const int64_t n_rows = std::ssize(step->tokens);
  if (op.in == Slot::kGate) {
    const QuantizedRows x{Quantized(0, bundles.shape().n_ff), FormOf(op)};
    sparse_ffn.RunDown(member, op.layer, x, Rows(Slot::kGate, op.begin), op.accumulate, Rows(op.projections[0].out),
                       then);
    return;
  }
  const QuantizedRows x{Quantized(0, bundles.shape().n_embd), FormOf(op)};
  const int64_t first = parts[op.projections[0].weight].first_row;
  if (sparse_ffn.predicts(op.layer)) {
    sparse_ffn.RunPredictedGate(member, op.layer, x, Rows(Slot::kGate, first), Rows(Slot::kUp, first), then);
  } else if (sparse_ffn.has_prompt_rows()) {
    RunProjections(member, op, 1, n_rows, [] {});
    sparse_ffn.RunUp(member, bundles, x, Rows(Slot::kUp, first), then);
  } else {
    RunProjections(member, op, 1, n_rows, then);
  }
}

PanelChunks CpuExecutor::Impl::ChunksOf(const Op& op, int n_projections, int64_t n_rows) const {
  int64_t n_panels = 0, bytes = 0;
  for (int i = 0; i < n_projections; ++i) {
    n_panels += Matrix(op.projections[i].weight).n_panels();
    bytes += Matrix(op.projections[i].weight).bytes();
  }
  return MakePanelChunks(n_panels, bytes, n_rows, FormOf(op), team.size());
}

// Memory has nothing to do while members wait and rows are worked on; so whoever waits begins with the next product.
std::span<const uint8_t> CpuExecutor::Impl::FirstBytes(const Stage& stage, const Team::Member& member) const {
  const Op& op = *stage.op;
  if (sparse_ffn.Find(op)) return {};  // which of them are read is not known yet
  const PanelChunks chunks = ChunksOf(op, op.n_projections, Rows(stage));
  int64_t panel = member.FirstChunk(chunks.n_chunks) * chunks.grain;
  for (int i = 0; i < op.n_projections; ++i) {
    const PackedMatrix& matrix = Matrix(op.projections[i].weight);
    if (panel >= matrix.n_panels()) {
      panel -= matrix.n_panels();
      continue;
    }
    if (!matrix.format()) break;
    const int64_t bytes = matrix.bytes() - panel * matrix.panel_bytes();
    return {matrix.panel(panel), static_cast<size_t>(std::min(read_ahead_bytes, bytes))};
  }
  return {};
}

template <typename Then>
void CpuExecutor::Impl::RunProjections(Team::Member& member, const Op& op, int n_projections, int64_t n_rows,
                                       const Then& then) {
  const PanelChunks of = ChunksOf(op, n_projections, n_rows);
  member.For(
      of.n_blocks * of.n_chunks, 1,
      [&](int64_t chunk, int64_t) {
        const int64_t block = chunk / of.n_chunks, first_row = n_rows * block / of.n_blocks;
        const int64_t rows = n_rows * (block + 1) / of.n_blocks - first_row;
        int64_t begin = chunk % of.n_chunks * of.grain, end = std::min(begin + of.grain, of.n_panels);
        for (int i = 0; i < n_projections && begin < end; ++i) {
          const int64_t here = Matrix(op.projections[i].weight).n_panels();
          if (begin < here)
            ProjectPanels(op, op.projections[i], member.index(), begin, std::min(end, here), first_row, rows);
          begin = std::max<int64_t>(0, begin - here);
          end -= here;
        }
      },
      then);
}

void CpuExecutor::Impl::ProjectPanels(const Op& op, const Projection& projection, int member, int64_t begin,
                                      int64_t end, int64_t first_row, int64_t n_rows) {
  const PackedMatrix& w = Matrix(projection.weight);
  const Part& part = parts[projection.weight];
  float* y = Row(projection.out, first_row) + part.first_row + begin * kPanelRows;
  if (w.format()) {
    const LinearArgs args{w.panel(begin),
                          Quantized(first_row, w.k()),
                          ActivationRowBytes(w.k()),
                          y,
                          Stride(projection.out) * static_cast<int64_t>(sizeof(float)),
                          end - begin,
                          w.n_blocks(),
                          op.accumulate};
    return RunByForm(kernels.at(w.type()), args, n_rows, FormOf(op),
                     [&](int64_t row) { return step->prompt[first_row + row] != 0; });
  }
  const auto is_prompt = [&](int64_t i) {
    const int64_t row = first_row + i;
    return step->prompt[op.wanted_rows ? step->wanted[row] : row] != 0;
  };
  float_linear.Run({w, begin * kPanelRows, std::min(end * kPanelRows, w.n()), Row(op.in, first_row) + part.first_k,
                    Stride(op.in), y, Stride(projection.out), n_rows, op.accumulate},
                   is_prompt, member);
}

CpuExecutor::CpuExecutor(const GgufFile& file, const Model& model, Team& team, Isa isa, int max_rows,
                         const LoadOptions& load, const KvLayout& kv_layout, Tracer* tracer, Peer* peer,
                         const Program* streamed)
    : impl_(std::make_unique<Impl>(file, model, team, isa, max_rows, load, kv_layout, tracer, peer, streamed)) {}

CpuExecutor::~CpuExecutor() = default;

bool CpuExecutor::Run(const StepView& step, const std::atomic<bool>& cancel) {
  Impl& impl = *impl_;
  CHECK(!step.tokens.empty() && static_cast<int>(step.tokens.size()) <= impl.max_rows);
  impl.step = &step;
  impl.plan = &impl.plans[step.streamed];
  impl.cancel = &cancel;
  impl.stopped = impl.peer_lost = false;
  for (size_t i = 0; i < step.spans.size(); ++i)
    std::fill_n(impl.span_of_row.begin() + step.spans[i].first_row, step.spans[i].n_rows, static_cast<int32_t>(i));
  if (impl.plan->trace) impl.plan->trace->BeginStep(step);
  impl.attention.Prepare(step);
  impl.sparse_ffn.BeginStep(step.prompt);
  impl.RunSerialFrom(0, 0);
  impl.team.Run([&](Team::Member& member) { impl.RunMember(member); }, step.max_members);
  if (impl.plan->trace) impl.plan->trace->EndStep();
  impl.step = nullptr;
  if (!impl.stopped) impl.sparse_ffn.EndStep();
  impl.weights.CheckIntact();
  return !impl.stopped;
}

std::span<const float> CpuExecutor::Logits(int i) const {
  const Op& last = impl_->plan->program.ops.back();
  const SlotRows rows = last.kind == OpKind::kReceive ? impl_->peer->Rows(last.channel) : impl_->Rows(Slot::kLogits);
  return {rows.Row(i), static_cast<size_t>(impl_->config.n_vocab)};
}

void CpuExecutor::SetInputTap(InputTap tap) {
  CHECK(!impl_->plan->trace);                  // it has counted the stages
  CHECK(impl_->sparse_ffn.Kernels().empty());  // generated rows have no input of down
  impl_->tap = std::move(tap);
  impl_->SetStages();
}

int64_t CpuExecutor::WeightBytes(const Model& model) { return Weights::BytesFor(model); }
void CpuExecutor::SetNeuronLevels(std::span<const float> levels) { impl_->sparse_ffn.SetLevels(levels); }
void CpuExecutor::SetPredictorLevels(std::span<const float> levels) { impl_->sparse_ffn.SetPredictorLevels(levels); }
void CpuExecutor::SetAudit(int64_t every) { impl_->sparse_ffn.SetAudit(every); }
FfnAudit CpuExecutor::TakeAudit() { return impl_->sparse_ffn.TakeAudit(); }
NeuronCount CpuExecutor::TakeNeuronCount() { return impl_->sparse_ffn.TakeCount(); }
std::optional<StagedFfn> CpuExecutor::StageFfn(const Model& model, int layer, const std::atomic<bool>& stop) const {
  return impl_->weights.StageFfn(model, layer, impl_->isa, stop);
}
void CpuExecutor::ReplaceFfn(StagedFfn staged) noexcept { impl_->weights.ReplaceFfn(std::move(staged)); }
std::span<const uint32_t> CpuExecutor::fired(int layer) const { return impl_->sparse_ffn.fired(layer); }
int64_t CpuExecutor::weight_bytes() const { return impl_->weights.bytes(); }

std::vector<std::pair<std::string, std::string>> CpuExecutor::Kernels() const {
  std::vector<std::pair<std::string, std::string>> kernels;
  for (const auto& [type, kernel] : impl_->kernels)
    kernels.emplace_back(fmt::format("linear {}", Info(type).name), kernel.name());
  for (const auto& entry : impl_->sparse_ffn.Kernels()) kernels.push_back(entry);
  for (const PackedMatrix& matrix : impl_->weights.matrices())
    if (matrix.bytes() && !matrix.format()) {
      kernels.emplace_back("linear float", impl_->float_linear.name());
      break;
    }
  const Isa isa = impl_->isa;
  const std::string vector_name(isa == Isa::kScalar ? "reference"
                                                    : Name(isa == Isa::kAmx ? Isa::kAvx512 : impl_->ops.isa));
  kernels.emplace_back("attention", isa == Isa::kAmx ? "amx_bf16, " + vector_name : vector_name);
  kernels.emplace_back("norm, rope, activation", vector_name);
  return kernels;
}

}  // namespace thermocline
