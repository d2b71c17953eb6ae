#include "cpu/trace_stages.h"

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
    case RowTask::kAct: return "act";
    case RowTask::kQuantize: return "quantize";
    case RowTask::kBias: return "bias";
    case RowTask::kTap: return "tap";
    case RowTask::kSend: return "send";
    case RowTask::kReceive: return "receive";
    case RowTask::kAdd: return "add";
    case RowTask::kMergeStates: return "merge states";
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
  if (stage.kind == Stage::Kind::kSendPanels)
    return {"send " + ShortName(model.weights[stage.op->weight]), "panels", stage.op->layer};
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

StageTracer::StageTracer(Tracer& tracer, int n_members, const Model& model, KvTypes kv_types,
                         const std::vector<Stage>& stages)
    : tracer_(tracer), stages_(stages) {
  std::vector<TraceLabel> labels = {{"step", "step", -1}};
  for (const Stage& stage : stages) {
    labels.push_back(LabelOf(stage, model));
    costs_.emplace_back(model, stage.op != nullptr ? *stage.op : Op{.kind = OpKind::kNorm}, kv_types);
  }
  first_label_ = tracer.Attach(n_members, std::move(labels));
}

TraceEvent StageTracer::Count(size_t i) const {
  const auto rows = static_cast<int32_t>(stages_[i].wanted_rows ? step_->wanted.size() : step_->tokens.size());
  Work work;
  costs_[i].AddRows(rows, work);
  if (stages_[i].kind == Stage::Kind::kAttention)
    for (const SpanView& span : step_->spans) costs_[i].AddSpan(span.first_position, span.n_rows, work);
  return {.begin_ns = 0,
          .end_ns = 0,
          .bytes = work.bytes,
          .ops = work.ops,
          .label = first_label_ + 1 + static_cast<int32_t>(i),
          .step = n_step_,
          .rows = rows,
          .chunks = 0};
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
