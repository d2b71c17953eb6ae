#include "runtime/emulated_ops.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "cpu/activations.h"
#include "cpu/attention.h"
#include "cpu/buffer.h"
#include "cpu/float_linear.h"
#include "cpu/linear.h"
#include "cpu/vector_ops.h"
#include "models/check.h"

namespace thermocline {
namespace {

constexpr int64_t kLogitRows = 16;  // that are multiplied at once

float* Floats(DeviceAddress address) { return reinterpret_cast<float*>(address); }
float* Row(const DeviceRows& rows, int64_t i) { return Floats(rows.data) + i * rows.stride; }

class EmulatedOps final : public DeviceOpExecutor {
 public:
  EmulatedOps() : isa_(ChooseIsa()), ops_(VectorOpsFor(isa_)), float_linear_(ops_, 1) {}

  bool Supports(DType) const override { return true; }
  void Prepare(std::span<const DeviceOp> ops, const DeviceLimits& limits) override;
  void Run(const DeviceOp& op, const DeviceStep& step) override;

 private:
  void PrepareAttention(const DeviceOp& op, int max_rows);
  void Linear(const DeviceOp& op, const DeviceStep& step);
  void Logits(const DeviceOp& op, const DeviceStep& step);
  // y (+)= W x for n_rows rows of x, those for which is_prompt(row) in that form.
  void Multiply(const DeviceMatrix& matrix, const float* x, int64_t x_stride, int64_t n_rows, bool accumulate, float* y,
                int64_t y_stride, PromptForm form, const std::function<bool(int64_t)>& is_prompt);
  void CountFirings(const DeviceOp& op, const DeviceStep& step);
  void StoreKv(const DeviceOp& op, const DeviceStep& step);
  void Attend(const DeviceOp& op, const DeviceStep& step);
  uint8_t* Quantized(int64_t row, int64_t k) const { return quantized_.data() + row * ActivationRowBytes(k); }

  const Isa isa_;
  const VectorOps& ops_;
  FloatLinear float_linear_;
  std::map<DType, LinearKernel> kernels_;
  Buffer quantized_;  // (max_rows) of ActivationRowBytes(K)
  Buffer padded_;     // (max_rows) of the largest K whose input is narrower
  Buffer logits_;     // (kLogitRows, n_vocab)
  Buffer activated_;  // (neurons): of the row whose firings are counted
  std::unique_ptr<KvLayout> layout_;
  std::unique_ptr<Attention> attention_;
  std::vector<SpanView> spans_;
  std::vector<uint8_t*> pages_;
};

void EmulatedOps::Prepare(std::span<const DeviceOp> ops, const DeviceLimits& limits) {
  int64_t k = 0, logit_floats = 0, n_gates = 0;
  for (const DeviceOp& op : ops) {
    for (int i = 0; i < op.n_projections; ++i) {
      const DeviceMatrix& w = op.projections[i].w;
      k = std::max(k, w.k);
      if (const PackedFormat* format = FindPackedFormat(w.type))
        kernels_.try_emplace(w.type, isa_, *format);
      else
        float_linear_.Prepare(w.k);
      if (op.kind == DeviceOpKind::kLogits)
        logit_floats = kLogitRows * ((w.n + kPanelRows - 1) / kPanelRows * kPanelRows);
    }
    if (op.kind == DeviceOpKind::kCountFirings) n_gates = std::max<int64_t>(n_gates, op.in.width);
    if ((op.kind == DeviceOpKind::kAttention || op.kind == DeviceOpKind::kAttentionState) && !attention_)
      PrepareAttention(op, limits.max_rows);
  }
  quantized_ = Buffer(limits.max_rows * ActivationRowBytes(k), "one step");
  padded_ = Buffer(k * static_cast<int64_t>(sizeof(float)), "one step");
  logits_ = Buffer(logit_floats * static_cast<int64_t>(sizeof(float)), "one step");
  activated_ = Buffer(n_gates * static_cast<int64_t>(sizeof(float)), "one step");
  spans_.reserve(limits.max_spans);
  pages_.reserve(int64_t{limits.max_spans} * limits.max_pages);
}

void EmulatedOps::PrepareAttention(const DeviceOp& op, int max_rows) {
  ModelConfig config{};
  config.head_dim = op.head_dim;
  config.n_head = op.n_head;
  config.n_head_kv = op.n_head_kv;
  layout_ = std::make_unique<KvLayout>(config, op.kv_types);
  attention_ = std::make_unique<Attention>(ops_, config, *layout_, max_rows, 1);
}

void EmulatedOps::Run(const DeviceOp& op, const DeviceStep& step) {
  const int64_t n_rows = std::ssize(op.wanted_rows ? step.wanted : step.positions);
  switch (op.kind) {
    case DeviceOpKind::kRopeTable:
      for (int64_t row = 0; row < n_rows; ++row)
        for (int i = 0; i < op.out.width / 2; ++i) {
          const double angle = step.positions[row] * reinterpret_cast<const double*>(op.vector)[i];
          Row(op.out, row)[2 * i] = static_cast<float>(std::cos(angle));
          Row(op.out, row)[2 * i + 1] = static_cast<float>(std::sin(angle));
        }
      break;
    case DeviceOpKind::kNorm:
      for (int64_t row = 0; row < n_rows; ++row) {
        const float* in = Row(op.in, op.wanted_rows ? step.wanted[row] : row);
        if (op.bias)
          ops_.layer_norm(in, Floats(op.vector), Floats(op.bias), op.eps, op.in.width, Row(op.out, row));
        else
          ops_.rms_norm(in, Floats(op.vector), op.eps, op.in.width, op.accumulate, Row(op.out, row));
      }
      break;
    case DeviceOpKind::kHeadNorm:
      for (int64_t row = 0; row < n_rows; ++row)
        for (int i = 0; i < op.out.width; i += op.head_dim) {
          float* head = Row(op.out, row) + i;
          ops_.rms_norm(head, Floats(op.vector), op.eps, op.head_dim, false, head);
        }
      break;
    case DeviceOpKind::kRope:
      for (int64_t row = 0; row < n_rows; ++row)
        for (int i = 0; i < op.out.width; i += op.head_dim)
          ops_.rope(Row(op.out, row) + i, Row(op.in, row), op.in.width, op.rope);
      break;
    case DeviceOpKind::kLinear: Linear(op, step); break;
    case DeviceOpKind::kLogits: Logits(op, step); break;
    case DeviceOpKind::kGatedAct:
      for (int64_t row = 0; row < n_rows; ++row)
        ops_.gated_act(Row(op.in, row), Row(op.in2, row), op.in.width, op.activation, Row(op.out, row));
      break;
    case DeviceOpKind::kAct:
      for (int64_t row = 0; row < n_rows; ++row)
        ops_.act(Row(op.in, row), op.in.width, op.activation, Row(op.out, row));
      break;
    case DeviceOpKind::kCountFirings: CountFirings(op, step); break;
    case DeviceOpKind::kStoreKv: StoreKv(op, step); break;
    case DeviceOpKind::kAttention:
    case DeviceOpKind::kAttentionState: Attend(op, step); break;
    case DeviceOpKind::kAttentionMerge:
      for (int64_t row = 0; row < n_rows; ++row)
        MergeStates(ops_, op.n_head, op.head_dim, Row(op.in2, row), Row(op.in, row), Row(op.out, row));
      break;
    case DeviceOpKind::kAdd:
      for (int64_t row = 0; row < n_rows; ++row) ops_.add(Row(op.in, row), op.out.width, Row(op.out, row));
      break;
    case DeviceOpKind::kReceive:
    case DeviceOpKind::kReceivePanels:
    case DeviceOpKind::kSend: CHECK(!"an op that is not ours"); break;
  }
}

void EmulatedOps::Multiply(const DeviceMatrix& matrix, const float* x, int64_t x_stride, int64_t n_rows,
                           bool accumulate, float* y, int64_t y_stride, PromptForm form,
                           const std::function<bool(int64_t)>& is_prompt) {
  const PackedMatrix w(matrix.type, matrix.n, matrix.k, reinterpret_cast<uint8_t*>(matrix.data));
  if (w.format())
    RunByForm(kernels_.at(w.type()),
              {w.panel(0), Quantized(0, w.k()), ActivationRowBytes(w.k()), y,
               y_stride * static_cast<int64_t>(sizeof(float)), w.n_panels(), w.n_blocks(), accumulate},
              n_rows, form, is_prompt);
  else
    float_linear_.Run({w, 0, w.n(), x, x_stride, y, y_stride, n_rows, accumulate}, is_prompt, 0);
}

void EmulatedOps::Linear(const DeviceOp& op, const DeviceStep& step) {
  const int64_t n_rows = std::ssize(op.wanted_rows ? step.wanted : step.positions);
  const auto is_prompt = [&](int64_t row) { return step.prompt[op.wanted_rows ? step.wanted[row] : row] != 0; };
  const int64_t k = op.projections[0].w.k;
  const PromptForm form = PromptFormFor(isa_, op.wanted_rows ? kAllGroups : op.large_group);
  bool packed = false;
  for (int i = 0; i < op.n_projections; ++i) packed |= FindPackedFormat(op.projections[i].w.type) != nullptr;
  for (int64_t row = 0; packed && row < n_rows; ++row) {
    const float* x = Row(op.in, row);
    if (op.in.width < k || op.lead > 0) {
      float* padded = padded_.as<float>();
      std::fill(std::copy_n(x, op.in.width, padded), padded + k, 0.f);
      std::fill_n(padded, op.lead, 0.f);
      x = padded;
    }
    if (is_prompt(row) && form == PromptForm::kBf16)
      RoundToBf16(x, k, Quantized(row, k));
    else
      ops_.quantize(x, k, is_prompt(row) ? op.large_group : kAllGroups, Quantized(row, k));
  }
  for (int i = 0; i < op.n_projections && n_rows > 0; ++i) {
    const DeviceProjection& to = op.projections[i];
    CHECK(packed || (op.in.width == k && op.lead == 0));
    Multiply(to.w, Row(op.in, 0), op.in.stride, n_rows, op.accumulate, Row(to.out, 0), to.out.stride, form, is_prompt);
    for (int64_t row = 0; to.bias && row < n_rows; ++row)
      ops_.add(Floats(to.bias), static_cast<int>(to.w.n), Row(to.out, row));
  }
}

void EmulatedOps::Logits(const DeviceOp& op, const DeviceStep& step) {
  const DeviceProjection& to = op.projections[0];
  const int64_t stride = (to.w.n + kPanelRows - 1) / kPanelRows * kPanelRows;
  for (int64_t first = 0; first < std::ssize(step.wanted); first += kLogitRows) {
    const int64_t n_rows = std::min<int64_t>(kLogitRows, std::ssize(step.wanted) - first);
    const auto is_prompt = [&](int64_t row) { return step.prompt[step.wanted[first + row]] != 0; };
    for (int64_t row = 0; FindPackedFormat(to.w.type) && row < n_rows; ++row)
      ops_.quantize(Row(op.in, first + row), to.w.k, kAllGroups, Quantized(row, to.w.k));
    Multiply(to.w, Row(op.in, first), op.in.stride, n_rows, false, logits_.as<float>(), stride, PromptForm::kPlanes,
             is_prompt);
    for (int64_t row = 0; row < n_rows; ++row) {
      float* out = op.host.data + (first + row) * op.host.stride;
      std::copy_n(logits_.as<float>() + row * stride, to.w.n, out);
      if (to.bias) ops_.add(Floats(to.bias), static_cast<int>(to.w.n), out);
    }
  }
}

void EmulatedOps::CountFirings(const DeviceOp& op, const DeviceStep& step) {
  auto* counts = reinterpret_cast<uint32_t*>(op.counts);
  float* activated = activated_.as<float>();
  for (int64_t row = 0; row < std::ssize(step.positions); ++row) {
    if (step.prompt[row]) continue;
    ops_.act(Row(op.in, row), op.in.width, op.activation, activated);
    for (int i = 0; i < op.in.width; ++i) counts[i] += !(std::abs(activated[i]) <= *Floats(op.vector));
  }
}

void EmulatedOps::StoreKv(const DeviceOp& op, const DeviceStep& step) {
  const int64_t head_bytes = KvHeadBytes(op.kv_types, op.head_dim);
  for (const DeviceSpan& span : step.spans)
    for (int i = 0; i < span.n_rows; ++i) {
      const int row = span.first_row + i, position = span.first_position + i;
      if (position < op.first_token || position >= op.end_token) continue;
      auto* page = reinterpret_cast<uint8_t*>(span.pages[op.kv_kind][position / kPageTokens]) + op.kv_offset_bytes;
      for (int head = 0; head < op.n_head_kv; ++head)
        ops_.store_kv(op.kv_types, Row(op.in, row) + head * op.head_dim, Row(op.in2, row) + head * op.head_dim,
                      op.head_dim, position % kPageTokens, page + head * head_bytes);
    }
}

void EmulatedOps::Attend(const DeviceOp& op, const DeviceStep& step) {
  spans_.clear();
  pages_.clear();
  for (const DeviceSpan& span : step.spans) {
    SpanView& view = spans_.emplace_back(SpanView{span.first_row, span.n_rows, span.first_position, {}});
    view.pages[op.kv_kind] = pages_.data() + pages_.size();  // never moves: reserved
    const int n_pages = (span.first_position + span.n_rows - 1) / kPageTokens + 1;
    for (int i = 0; i < n_pages; ++i) pages_.push_back(reinterpret_cast<uint8_t*>(span.pages[op.kv_kind][i]));
  }
  attention_->Prepare({.tokens = {}, .positions = {}, .prompt = step.prompt, .spans = spans_, .wanted = {}});
  attention_->RunAlone({Row(op.in, 0),
                        op.in.stride,
                        Row(op.out, 0),
                        op.out.stride,
                        op.window,
                        op.scale,
                        {op.kv_kind, op.kv_offset_bytes},
                        op.first_token,
                        op.end_token,
                        op.kind == DeviceOpKind::kAttentionState});
}

}  // namespace

std::unique_ptr<DeviceOpExecutor> MakeEmulatedOps() { return std::make_unique<EmulatedOps>(); }

}  // namespace thermocline
