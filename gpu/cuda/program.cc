#include "gpu/cuda/program.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "gpu/cuda/linear.h"

namespace thermocline::cuda {
namespace {

// Rows of logits that are multiplied at once: fewer would read the head again and again, more take memory.
constexpr int kLogitRows = 64;

float* Floats(DeviceAddress address) { return reinterpret_cast<float*>(address); }
Rows RowsOf(const DeviceRows& rows) { return {Floats(rows.data), rows.stride}; }
int64_t InnerK(const DeviceOp& op) { return op.projections[0].w.k; }
bool Multiplies(const DeviceOp& op) { return op.kind == DeviceOpKind::kLinear || op.kind == DeviceOpKind::kLogits; }
bool Attends(const DeviceOp& op) {
  return op.kind == DeviceOpKind::kAttention || op.kind == DeviceOpKind::kAttentionState;
}

KvPlace PlaceOf(const DeviceOp& op) {
  return {op.kv_kind, op.kv_offset_bytes, op.n_head_kv, op.head_dim, op.first_token, op.end_token};
}

}  // namespace

Scratch TakeScratch(const std::vector<std::vector<DeviceOp>>& programs, const DeviceLimits& limits,
                    const std::function<DeviceAddress(int64_t, const char*)>& allocate) {
  int64_t activation_bytes = 0, attention_floats = 0, n_vocab = 0;
  for (const std::vector<DeviceOp>& ops : programs)
    for (const DeviceOp& op : ops) {
      if (Multiplies(op)) activation_bytes = std::max(activation_bytes, ActivationBytes(limits.max_rows, InnerK(op)));
      if (op.kind == DeviceOpKind::kLogits) n_vocab = op.projections[0].w.n;
      if (Attends(op))
        attention_floats = std::max(attention_floats, AttentionScratch(op.n_head, op.head_dim, limits.max_pages));
    }
  const auto take = [&](int64_t bytes) { return bytes > 0 ? allocate(bytes, "what one step computes") : 0; };
  const auto floats = [&](int64_t n) { return Floats(take(n * static_cast<int64_t>(sizeof(float)))); };
  Scratch scratch;
  scratch.activations = reinterpret_cast<uint8_t*>(take(activation_bytes));
  scratch.limits = floats(limits.max_rows);
  scratch.attention = floats(attention_floats);
  scratch.logit_rows = std::min(limits.max_rows, kLogitRows);
  scratch.logits = floats(n_vocab * scratch.logit_rows);
  scratch.counter = reinterpret_cast<uint32_t*>(take(sizeof(uint32_t)));
  return scratch;
}

Program::Program(std::vector<DeviceOp> ops, const StepAddresses& step, volatile uint32_t* flags, const Scratch& scratch,
                 PanelStream* panels)
    : ops_(std::move(ops)), step_(step), flags_(flags), scratch_(scratch), panels_(panels) {
  for (const DeviceOp& op : ops_) {
    Check(op);
    if (Attends(op)) rows_per_block_ = RowsPerBlock(op.n_head / op.n_head_kv);
  }
}

void Program::Check(const DeviceOp& op) const {
  for (int i = 0; i < op.n_projections; ++i)
    if (!HasKernel(op.projections[i].w.type))
      throw DeviceError("no CUDA kernel multiplies by {}; the types that have one are {}",
                        Info(op.projections[i].w.type).name, TypesWithKernel());
  if (!Attends(op) && op.kind != DeviceOpKind::kStoreKv) return;
  if (op.kv_types != KvTypes{})
    throw DeviceError("the CUDA kernels keep keys and values in F16 only; leave out -ctk and -ctv, or use --gpu off");
  if (op.head_dim > kMaxAttentionHeadDim)
    throw DeviceError("the CUDA kernels attend with heads of up to {} dimensions, not {}", kMaxAttentionHeadDim,
                      op.head_dim);
}

StepTables Program::Tables(const StepShape& shape) const {
  StepTables tables;
  tables.position = step_.position;
  tables.span_of_row = step_.span_of_row;
  tables.blocks = step_.blocks;
  tables.n_rows = shape.n_rows;
  tables.n_blocks = shape.n_blocks;
  std::ranges::copy(step_.pages, tables.pages);
  tables.max_pages = step_.max_pages;
  return tables;
}

void Program::Enqueue(const Queue& on, const StepShape& shape, bool recorded) const {
  Queue queue = on;
  if (panels_) {
    queue.overlaps = false;  // kernels wait for more than the one in front of them
    panels_->Begin(queue, recorded);
  }
  for (size_t i = 0; i < ops_.size(); ++i) {
    const DeviceOp& op = ops_[i];
    if (op.wanted_rows && shape.n_wanted == 0) {
      if (op.kind == DeviceOpKind::kSend || op.kind == DeviceOpKind::kLogits) LaunchRaise(queue, FlagOf(op));
      continue;
    }
    EnqueueOp(queue, i, shape);
  }
}

bool Program::Rounds(size_t i, const StepShape& shape) const {
  if (i + 1 >= ops_.size() || !Multiplies(ops_[i + 1])) return false;
  const DeviceOp &op = ops_[i], &next = ops_[i + 1];
  if (op.kind != DeviceOpKind::kNorm && op.kind != DeviceOpKind::kGatedAct && op.kind != DeviceOpKind::kAct)
    return false;
  return op.out.data == next.in.data && op.wanted_rows == next.wanted_rows && op.out.width == next.in.width &&
         ActivationGroups(op.out.width) == ActivationGroups(InnerK(next)) && !(next.large_group >= 0 && shape.prompt);
}

bool Program::IsRounded(size_t i) const {
  const DeviceOp& op = ops_[i];
  while (i > 0 && ops_[i - 1].kind == DeviceOpKind::kReceivePanels) --i;
  if (i == 0 || ops_[i - 1].kind != DeviceOpKind::kLinear) return false;
  const DeviceOp& before = ops_[i - 1];
  return before.in.data == op.in.data && before.in.width == op.in.width && before.lead == op.lead &&
         InnerK(before) == InnerK(op) && before.large_group == op.large_group && before.wanted_rows == op.wanted_rows;
}

void Program::EnqueueOp(const Queue& queue, size_t i, const StepShape& shape) const {
  const DeviceOp& op = ops_[i];
  const int n_rows = op.wanted_rows ? shape.n_wanted : shape.n_rows;
  const Rows in = RowsOf(op.in), in2 = RowsOf(op.in2), out = RowsOf(op.out);
  const Quantized rounded = Rounds(i, shape) ? scratch_.activations : nullptr;
  switch (op.kind) {
    case DeviceOpKind::kRopeTable:
      return LaunchRopeTable(queue, step_.position, reinterpret_cast<const double*>(op.vector), op.out.width / 2, out,
                             n_rows);
    case DeviceOpKind::kNorm: {
      NormArgs args;
      args.x = in;
      args.gather = op.wanted_rows ? step_.wanted : nullptr;
      args.weight = Floats(op.vector);
      args.bias = Floats(op.bias);
      args.eps = op.eps;
      args.n = op.out.width;
      args.accumulate = op.accumulate;
      args.out = out;
      args.quantized = rounded;
      return LaunchNorm(queue, args, n_rows);
    }
    case DeviceOpKind::kHeadNorm:
      return LaunchHeadNorm(queue, out, Floats(op.vector), op.eps, op.out.width / op.head_dim, op.head_dim, n_rows);
    case DeviceOpKind::kRope:
      return LaunchRope(queue, out, in, op.rope, op.in.width, op.out.width / op.head_dim, op.head_dim, n_rows);
    case DeviceOpKind::kLinear: return EnqueueLinear(queue, i, shape);
    case DeviceOpKind::kGatedAct: return LaunchAct(queue, in, in2, op.activation, op.out.width, out, rounded, n_rows);
    case DeviceOpKind::kAct:
      return LaunchAct(queue, in, ConstRows(), op.activation, op.out.width, out, rounded, n_rows);
    case DeviceOpKind::kCountFirings:
      return LaunchCountFirings(queue, in, op.activation, op.in.width, Floats(op.vector), step_.prompt,
                                reinterpret_cast<uint32_t*>(op.counts), n_rows);
    case DeviceOpKind::kStoreKv: return LaunchStoreKv(queue, Tables(shape), PlaceOf(op), in, in2);
    case DeviceOpKind::kAttention:
    case DeviceOpKind::kAttentionState: return EnqueueAttention(queue, op, shape);
    case DeviceOpKind::kAttentionMerge: return LaunchMergeStates(queue, in, in2, op.n_head, op.head_dim, out, n_rows);
    case DeviceOpKind::kAdd: return LaunchAdd(queue, in, op.out.width, out, n_rows);
    case DeviceOpKind::kReceive:
      return LaunchReceive(queue, {op.host.data, op.host.stride}, op.out.width, out, n_rows, FlagOf(op));
    case DeviceOpKind::kSend:
      return LaunchSend(queue, in, op.in.width, {op.host.data, op.host.stride}, n_rows, FlagOf(op), scratch_.counter);
    case DeviceOpKind::kReceivePanels: return panels_->Receive(queue, op, FlagOf(op), FlagAt(op.taken));
    case DeviceOpKind::kLogits: return EnqueueLogits(queue, i, shape);
  }
}

void Program::EnqueueAttention(const Queue& queue, const DeviceOp& op, const StepShape& shape) const {
  AttentionArgs args;
  args.q = RowsOf(op.in);
  args.out = RowsOf(op.out);
  args.n_head = op.n_head;
  args.window = op.window;
  args.scale = op.scale;
  args.state = op.kind == DeviceOpKind::kAttentionState;
  LaunchAttention(queue, Tables(shape), PlaceOf(op), args, scratch_.attention);
}

void Program::Multiply(const Queue& queue, const DeviceOp& op, const uint8_t* x, int m) const {
  // Those of one type share a launch.
  for (int i = 0; i < op.n_projections; ++i) {
    const DType type = op.projections[i].w.type;
    const auto same = [&](const DeviceProjection& p) { return p.w.type == type; };
    if (std::any_of(op.projections.begin(), op.projections.begin() + i, same)) continue;
    LinearArgs args{x, m, InnerK(op), 0, {}, op.accumulate};
    for (int j = i; j < op.n_projections; ++j) {
      const DeviceProjection& p = op.projections[j];
      if (!same(p)) continue;
      args.projections[args.n_projections++] = {reinterpret_cast<const uint8_t*>(p.w.data), static_cast<int>(p.w.n),
                                                Floats(p.out.data), p.out.stride, Floats(p.bias)};
    }
    LaunchLinear(queue, type, args);
  }
}

void Program::EnqueueLinear(const Queue& queue, size_t i, const StepShape& shape) const {
  const DeviceOp& op = ops_[i];
  const int n_rows = op.wanted_rows ? shape.n_wanted : shape.n_rows;
  if (i == 0 || !(Rounds(i - 1, shape) || IsRounded(i)))
    LaunchQuantize(queue, RowsOf(op.in), op.in.width, InnerK(op),
                   {op.large_group, op.large_group >= 0 && shape.prompt ? step_.prompt : nullptr, scratch_.limits},
                   scratch_.activations, n_rows, op.lead);
  Multiply(queue, op, scratch_.activations, n_rows);
  if (panels_) panels_->Release(queue, op.projections[0].w.data);
}

void Program::EnqueueLogits(const Queue& queue, size_t i, const StepShape& shape) const {
  const DeviceOp& op = ops_[i];
  const DeviceMatrix& w = op.projections[0].w;
  for (int first = 0; first < shape.n_wanted; first += scratch_.logit_rows) {
    const int m = std::min(scratch_.logit_rows, shape.n_wanted - first);
    if (i == 0 || !Rounds(i - 1, shape) || m < shape.n_wanted)
      LaunchQuantize(queue, {Floats(op.in.data) + first * op.in.stride, op.in.stride}, op.in.width, w.k, {},
                     scratch_.activations, m);
    DeviceOp part = op;
    part.projections[0].out = {reinterpret_cast<DeviceAddress>(scratch_.logits), w.n, static_cast<int>(w.n)};
    Multiply(queue, part, scratch_.activations, m);
    CheckLaunch(cudaMemcpy2DAsync(op.host.data + first * op.host.stride, op.host.stride * sizeof(float),
                                  scratch_.logits, w.n * sizeof(float), w.n * sizeof(float), m, cudaMemcpyDeviceToHost,
                                  queue.stream));
  }
  LaunchRaise(queue, FlagOf(op));
}

}  // namespace thermocline::cuda
