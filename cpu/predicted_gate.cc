#include "cpu/predicted_gate.h"

#include <emmintrin.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>

#include "cpu/activations.h"
#include "models/check.h"

namespace thermocline {
namespace {

constexpr int kGroups = kSliceNeurons / kBundleNeurons;  // of a slice
constexpr int kRowsAhead = 2;                            // gates that are fetched while one is multiplied
constexpr DType kPredictorType = DType::kQ8_0;

// Bit i: score[i] is not <= cut[i], so also where it is NaN.
uint32_t ChosenMask(const float* score, const float* cut) {
  uint32_t mask = 0;
  for (int i = 0; i < kBundleNeurons; i += 4) {
    const int lanes = _mm_movemask_ps(_mm_cmpnle_ps(_mm_loadu_ps(score + i), _mm_loadu_ps(cut + i)));
    mask |= static_cast<uint32_t>(lanes) << i;
  }
  return mask;
}

void Prefetch(const uint8_t* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) _mm_prefetch(reinterpret_cast<const char*>(row + at), _MM_HINT_T1);
}

PackedMatrix Pack(const std::vector<uint8_t>& rows, int64_t n, int64_t k, Isa isa) {
  CHECK(std::ssize(rows) == n * FileRowBytes(kPredictorType, k));
  PackedMatrix matrix(kPredictorType, n, k);
  matrix.PackPanels(rows.data(), 0, matrix.n_panels(), isa);
  return matrix;
}

}  // namespace

PredictedGate::PredictedGate(Isa isa, int max_rows, int n_members)
    : isa_(isa), ops_(VectorOpsFor(isa)), max_rows_(max_rows), n_members_(n_members) {}

void PredictedGate::Add(const Bundles& gates, const NeuronPredictor& predictor, Activation activation) {
  const BundleShape& shape = gates.shape();
  CHECK(predictor.rank > 0 && std::ssize(predictor.bias) == shape.n_ff);
  if (!linear_) linear_.emplace(isa_, *FindPackedFormat(kPredictorType));
  auto kernel =
      std::find_if(kernels_.begin(), kernels_.end(), [&](const auto& entry) { return entry.first == shape.up; });
  if (kernel == kernels_.end())
    kernel = kernels_.insert(kernels_.end(), {shape.up, std::make_unique<BundleKernel>(isa_, shape)});
  layers_.push_back({&gates, kernel->second.get(), Pack(predictor.in, predictor.rank, shape.n_embd, isa_),
                     Pack(predictor.out, shape.n_ff, predictor.rank, isa_), predictor.bias, predictor.bias, activation,
                     predictor.relu});
  Layer& layer = layers_.back();
  for (float& cut : layer.cut) cut = predictor.level - cut;
  reduced_stride_ = std::max(reduced_stride_, layer.in.n_panels() * kPanelRows);
  reduced_q_bytes_ = std::max(reduced_q_bytes_, ActivationRowBytes(predictor.rank));
}

void PredictedGate::FinishAdding() {
  if (empty()) return;
  constexpr int64_t kFloat = sizeof(float);
  int64_t n_ff = 0;
  for (const Layer& layer : layers_) n_ff = std::max(n_ff, layer.gates->shape().n_ff);
  reduced_ = Buffer(max_rows_ * reduced_stride_ * kFloat, "one step");
  reduced_q_ = Buffer(max_rows_ * reduced_q_bytes_, "one step");
  scores_ = Buffer(n_members_ * kRowsTogether * kSliceNeurons * kFloat, "one step");
  audited_ = Buffer(n_ff * kFloat, "one step");
}

void PredictedGate::SetLevels(std::span<const float> levels) {
  CHECK(levels.size() == layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i)
    for (size_t j = 0; j < layers_[i].cut.size(); ++j) layers_[i].cut[j] = levels[i] - layers_[i].bias[j];
}

void PredictedGate::Reduce(const Layer& layer, const Rows& rows, int64_t begin, int64_t end) const {
  const int64_t x_bytes = ActivationRowBytes(layer.in.k());
  for (const RowRun& run : rows.runs)
    linear_->Run({layer.in.panel(begin), rows.x + run.begin * x_bytes, x_bytes,
                  reduced_.as<float>() + run.begin * reduced_stride_ + begin * kPanelRows,
                  reduced_stride_ * static_cast<int64_t>(sizeof(float)), end - begin, layer.in.n_blocks(), 0},
                 run.n);
}

void PredictedGate::QuantizeReduced(const Layer& layer, const Rows& rows) const {
  for (const RowRun& run : rows.runs)
    for (int64_t row = run.begin; row < run.begin + run.n; ++row) {
      float* reduced = reduced_.as<float>() + row * reduced_stride_;
      if (layer.relu)
        for (int64_t i = 0; i < layer.in.n(); ++i) reduced[i] = std::max(0.0f, reduced[i]);
      ops_.quantize(reduced, layer.in.n(), kAllGroups, reduced_q_.data() + row * reduced_q_bytes_);
    }
}

void PredictedGate::RunSlice(const Layer& layer, const Rows& rows, int64_t slice, int member,
                             NeuronCount& count) const {
  const BundleShape& shape = layer.gates->shape();
  const int64_t first = slice * kSliceNeurons, n_neurons = std::min<int64_t>(kSliceNeurons, shape.n_ff - first);
  const int64_t n_panels = n_neurons / kPanelRows;
  float* scores = scores_.as<float>() + member * kRowsTogether * kSliceNeurons;
  std::array<uint32_t, kGroups> chosen, any{};
  for (const RowRun& run : rows.runs)
    for (int64_t begin = run.begin; begin < run.begin + run.n; begin += kRowsTogether) {
      const int64_t n = std::min(kRowsTogether, run.begin + run.n - begin);
      linear_->Run({layer.out.panel(first / kPanelRows), Reduced(begin), reduced_q_bytes_, scores,
                    kSliceNeurons * static_cast<int64_t>(sizeof(float)), n_panels, layer.out.n_blocks(), 0},
                   n);
      for (int64_t i = 0; i < n; ++i) {
        chosen = {};
        for (int64_t group = 0; group < n_neurons / kBundleNeurons; ++group) {
          const int64_t at = group * kBundleNeurons;
          chosen[group] = ChosenMask(scores + i * kSliceNeurons + at, layer.cut.data() + first + at);
          count.predicted += std::popcount(chosen[group]);
          any[group] |= chosen[group];
        }
        ReadGates(layer, rows, begin + i, slice, chosen, rows.gate + (begin + i) * rows.gate_stride + first);
      }
    }
  if (rows.audited >= 0) Audit(layer, rows, slice);
  for (const uint32_t mask : any) count.bytes_read += std::popcount(mask) * shape.bundle_bytes();
  count.bytes += n_neurons * shape.bundle_bytes();
  count.predictor_bytes += n_panels * layer.out.panel_bytes();
  if (slice == 0) count.predictor_bytes += layer.in.bytes();
}

// Writes the slice of the row's gates; `chosen`: a mask for each group of the slice.
void PredictedGate::ReadGates(const Layer& layer, const Rows& rows, int64_t row, int64_t slice,
                              std::span<const uint32_t> chosen, float* gate) const {
  const BundleShape& shape = layer.gates->shape();
  const int64_t first = slice * kSliceNeurons, row_bytes = shape.bundle_bytes();
  std::array<const uint8_t*, kSliceNeurons + 1> list;
  std::array<uint16_t, kSliceNeurons> neuron;
  int n = 0;
  for (size_t group = 0; group < chosen.size(); ++group)
    for (uint32_t left = chosen[group]; left; left &= left - 1, ++n) {
      neuron[n] = static_cast<uint16_t>(group * kBundleNeurons + std::countr_zero(left));
      list[n] = layer.gates->bundle(first + neuron[n]);
    }
  list[n] = nullptr;
  std::fill_n(gate, std::min<int64_t>(kSliceNeurons, shape.n_ff - first), 0.f);
  const int n_begun = std::min(n, kRowsAhead);
  for (int i = 0; i < n_begun; ++i) Prefetch(list[i], row_bytes);
  BundlesAhead ahead{.next = list.data() + n_begun,
                     .at = nullptr,
                     .end = nullptr,
                     .lines_per_step = (row_bytes / 64 - 1) / shape.up_blocks() + 1,
                     .scales = nullptr};
  alignas(64) std::array<float, kSliceNeurons> values;
  layer.kernel->Up({list.data(), rows.spread + row * SpreadBytes(shape.n_embd), values.data(), n, &ahead});
  for (int i = 0; i < n; ++i) gate[neuron[i]] = values[i];
}

void PredictedGate::Audit(const Layer& layer, const Rows& rows, int64_t slice) const {
  std::array<uint32_t, kGroups> all;
  const int64_t first = slice * kSliceNeurons, n = std::min<int64_t>(kSliceNeurons, layer.gates->shape().n_ff - first);
  for (int group = 0; group < kGroups; ++group) all[group] = group < n / kBundleNeurons ? ~0u : 0;
  float* gate = audited_.as<float>() + first;
  ReadGates(layer, rows, rows.audited, slice, all, gate);
  ops_.act(gate, static_cast<int>(n), layer.activation, gate);
}

std::vector<std::pair<std::string, std::string>> PredictedGate::Kernels() const {
  std::vector<std::pair<std::string, std::string>> names;
  if (!empty()) names.emplace_back("predictors", linear_->name());
  for (const auto& [type, kernel] : kernels_)
    names.emplace_back(fmt::format("predicted gates {}", Info(type).name), kernel->name());
  return names;
}

}  // namespace thermocline
