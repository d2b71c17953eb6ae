#include "cpu/trace_stages.h"

#include <algorithm>

namespace thermocline {
namespace {

const char* Name(RowTask task) {
  switch (task) {
    case RowTask::kRopeTables: return "rope tables";
    case RowTask::kEmbed: return "embed";
    case RowTask::kNorm: return "norm";
    case RowTask::kHeadNorm: return "head norm";
    case RowTask::kRope: return "rope";
    case RowTask::kStoreKv: return "store kv";
    case RowTask::kGatedAct: return "gated act";
    case RowTask::kQuantize: return "quantize";
    case RowTask::kBias: return "bias";
  }
  return "";
}

// "blk.3.attn_q.weight" is attn_q.
std::string ShortName(const Weight& weight) {
  std::string name(weight.tensor->name);
  if (const auto end = name.rfind('.'); end != std::string::npos) name.resize(end);
  if (const auto dot = name.rfind('.'); dot != std::string::npos) name.erase(0, dot + 1);
  return name;
}

void Join(std::string& names, const std::string& name) {
  if (!names.empty()) names += " + ";
  names += name;
}

TraceLabel LabelOf(const Stage& stage, const Model& model) {
  if (stage.kind == Stage::Kind::kAttention) return {"attention", "attention", stage.op->layer};
  if (stage.kind == Stage::Kind::kLinear) {
    TraceLabel label{"", "linear", stage.op->layer};
    for (int i = 0; i < stage.op->n_projections; ++i)
      Join(label.name, ShortName(model.weights[stage.op->projections[i].weight]));
    return label;
  }
  TraceLabel label{"", "rows", -1};
  const char* last = "";
  for (const Stage::Task& task : stage.tasks) {
    if (task.op != nullptr) label.layer = task.op->layer;
    if (Name(task.task) != last) Join(label.name, Name(task.task));
    last = Name(task.task);
  }
  return label;
}

}  // namespace

StageTracer::StageTracer(Tracer& tracer, int n_members, const Model& model, const std::vector<Stage>& stages,
                         const std::vector<int64_t>& packed_bytes)
    : tracer_(tracer), stages_(stages) {
  std::vector<TraceLabel> labels = {{"step", "step", -1}};
  for (const Stage& stage : stages) {
    labels.push_back(LabelOf(stage, model));
    Cost& cost = costs_.emplace_back();
    if (stage.kind == Stage::Kind::kAttention) {
      const ModelConfig& config = model.config;
      cost.bytes_per_token = int64_t{2} * sizeof(uint16_t) * config.n_head_kv * config.head_dim;
      cost.ops_per_pair = int64_t{4} * config.n_head * config.head_dim;
      cost.window = stage.op->window;
    } else if (stage.kind == Stage::Kind::kLinear) {
      for (int i = 0; i < stage.op->n_projections; ++i) {
        const WeightId id = stage.op->projections[i].weight;
        cost.bytes += packed_bytes[id];
        cost.ops_per_row += 2 * model.weights[id].n * model.weights[id].k;
      }
    }
  }
  first_label_ = tracer.Attach(n_members, std::move(labels));
}

TraceEvent StageTracer::Count(size_t i) const {
  const Cost& cost = costs_[i];
  const auto rows = static_cast<int32_t>(stages_[i].wanted_rows ? step_->wanted.size() : step_->tokens.size());
  TraceEvent event{.begin_ns = 0,
                   .end_ns = 0,
                   .bytes = rows > 0 ? cost.bytes : 0,
                   .ops = rows * cost.ops_per_row,
                   .label = first_label_ + 1 + static_cast<int32_t>(i),
                   .step = n_step_,
                   .rows = rows,
                   .chunks = 0};
  if (stages_[i].kind != Stage::Kind::kAttention) return event;
  for (const SpanView& span : step_->spans) {
    const int64_t end = span.first_position + span.n_rows;
    const int64_t first_seen = cost.window ? std::max(0, span.first_position - cost.window + 1) : 0;
    event.bytes += (end - first_seen) * cost.bytes_per_token;
    // Row r sees first_position + r + 1 tokens, or the window.
    int64_t pairs = span.n_rows * (2 * int64_t{span.first_position} + span.n_rows + 1) / 2;
    if (cost.window) pairs = std::min(pairs, int64_t{span.n_rows} * cost.window);
    event.ops += pairs * cost.ops_per_pair;
  }
  return event;
}

void StageTracer::BeginStep(const StepView& step) {
  step_ = &step;
  n_step_ = tracer_.NextStep();
  begin_ns_ = TraceTrack::Now();
}

void StageTracer::EndStep() {
  TraceEvent whole{};
  for (size_t i = 0; i < stages_.size(); ++i) {
    const TraceEvent part = Count(i);
    whole.bytes += part.bytes;
    whole.ops += part.ops;
  }
  whole.label = first_label_;
  whole.step = n_step_;
  whole.rows = static_cast<int32_t>(step_->tokens.size());
  tracer_.steps().Begin(whole);
  tracer_.steps().Work(begin_ns_, 1, 1);
  step_ = nullptr;
}

TraceTrack& StageTracer::Begin(int member, size_t stage) const {
  TraceTrack& track = tracer_.track(member);
  track.Begin(Count(stage));
  return track;
}

}  // namespace thermocline
