#include "cpu/bundle_ffn.h"

#include <emmintrin.h>

#include <algorithm>
#include <bit>

#include "cpu/activations.h"

namespace thermocline {
namespace {

// Bit i: |activation[i]| is not <= level, so also where it is NaN.
uint32_t ActiveMask(const float* activation, float level) {
  const __m128 sign = _mm_set1_ps(-0.f), levels = _mm_set1_ps(level);
  uint32_t mask = 0;
  for (int i = 0; i < kBundleNeurons; i += 4) {
    const int lanes = _mm_movemask_ps(_mm_cmpnle_ps(_mm_andnot_ps(sign, _mm_loadu_ps(activation + i)), levels));
    mask |= static_cast<uint32_t>(lanes) << i;
  }
  return mask;
}

// Chosen neurons of one group.
struct Neurons {
  int64_t group;
  int n = 0;
  const uint8_t* bundle[kBundleNeurons + 1];  // null behind the last

  Neurons(const Bundles& bundles, int64_t group, uint32_t chosen) : group(group) {
    const uint8_t* first = bundles.bundle(group * kBundleNeurons);
    for (; chosen; chosen &= chosen - 1)
      bundle[n++] = first + std::countr_zero(chosen) * bundles.shape().bundle_bytes();
    bundle[n] = nullptr;
  }
};

// The neurons that the row reads next from `group` on: beyond the slice's end too, as who takes a slice mostly takes
// the one behind it.
Neurons FindNext(const Bundles& bundles, const BundleRow& row, const Firing& firing, int64_t group) {
  for (; group < bundles.shape().n_groups(); ++group) {
    const uint32_t chosen = firing.skip ? ActiveMask(row.activation + group * kBundleNeurons, firing.level) : ~0u;
    if (chosen) return {bundles, group, chosen};
  }
  return {bundles, 0, 0};
}

// h of the chosen neurons of a group, rounded as cpu/activations.h says.
struct RoundedNeurons {
  alignas(16) int16_t q[kBundleNeurons];
  float scale;
  int32_t sum;

  // (kBundleNeurons), 16-byte aligned, zeros behind the chosen ones.
  explicit RoundedNeurons(const float* h) {
    constexpr float kLargest = 0x1p120f, kSmallest = 0x1p-100f;
    const auto load = [h](int i) {
      const __m128 value = _mm_load_ps(h + i), numbers = _mm_and_ps(value, _mm_cmpord_ps(value, value));
      return _mm_max_ps(_mm_min_ps(numbers, _mm_set1_ps(kLargest)), _mm_set1_ps(-kLargest));
    };
    __m128 largest = _mm_setzero_ps();
    for (int i = 0; i < kBundleNeurons; i += 4)
      largest = _mm_max_ps(largest, _mm_andnot_ps(_mm_set1_ps(-0.f), load(i)));
    largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
    const float max = _mm_cvtss_f32(_mm_max_ss(largest, _mm_shuffle_ps(largest, largest, 1)));
    scale = max < kSmallest ? 0 : max / kActivationMax;
    const __m128 inverse = _mm_set1_ps(max < kSmallest ? 0 : kActivationMax / max);
    __m128i sums = _mm_setzero_si128();
    for (int i = 0; i < kBundleNeurons; i += 8) {
      const __m128i words = _mm_packs_epi32(_mm_cvtps_epi32(_mm_mul_ps(load(i), inverse)),
                                            _mm_cvtps_epi32(_mm_mul_ps(load(i + 4), inverse)));
      _mm_store_si128(reinterpret_cast<__m128i*>(q + i), words);
      sums = _mm_add_epi32(sums, _mm_madd_epi16(words, _mm_set1_epi16(1)));
    }
    alignas(16) int32_t parts[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(parts), sums);
    sum = parts[0] + parts[1] + parts[2] + parts[3];
  }
};

void RunGroup(const BundleKernel& kernel, const Bundles& bundles, const BundleRow& row, const Firing& firing,
              int64_t group, uint32_t active, float* y) {
  const uint32_t chosen = firing.skip ? active : ~0u;
  Neurons now(bundles, group, chosen);
  const Neurons next = FindNext(bundles, row, firing, group + 1);
  alignas(16) float h[kBundleNeurons] = {};
  const BundleShape& shape = bundles.shape();
  const int64_t steps = now.n * shape.up_blocks() + (now.n + 1) / 2 * shape.down_blocks();
  BundlesAhead ahead{.next = next.bundle,
                     .at = nullptr,
                     .end = nullptr,
                     .lines_per_step = next.n * shape.bundle_bytes() / 64 / steps + 1,
                     .scales = bundles.down_scales(next.group)};
  kernel.Up({now.bundle, row.x, h, now.n, &ahead});
  const float* activation = row.activation + group * kBundleNeurons;
  int n = 0;
  for (uint32_t left = chosen; left; left &= left - 1, ++n) {
    const int i = std::countr_zero(left);
    h[n] = active >> i & 1 ? activation[i] * h[n] : 0;
  }
  if (n % 2) now.bundle[n] = now.bundle[0];  // with q = 0
  const RoundedNeurons rounded(h);
  kernel.Down({.bundle = now.bundle,
               .q = rounded.q,
               .scales = bundles.down_scales(group),
               .y = y,
               .n = n + n % 2,
               .scale = rounded.scale,
               .sum = rounded.scale * static_cast<float>(rounded.sum),
               .correction = -shape.down_format().zero_point * rounded.sum,
               .ahead = &ahead});
}

}  // namespace

std::vector<GatedFfn> FindSparseFfns(const Model& model, FfnMode mode) {
  std::vector<GatedFfn> ffns;
  const std::vector<Op>& ops = model.program.ops;
  const auto width = [&](Slot slot) { return model.program.width[static_cast<size_t>(slot)]; };
  if (!BundleShape::Fits(width(Slot::kNormed), width(Slot::kGate))) return ffns;
  for (size_t i = 1; i + 1 < ops.size(); ++i) {
    const Op &product = ops[i - 1], &act = ops[i], &down = ops[i + 1];
    if (act.kind != OpKind::kGatedAct) continue;
    if (mode == FfnMode::kExact && act.activation != Activation::kRelu) continue;
    const bool gated = product.kind == OpKind::kLinear && product.n_projections == 2 &&
                       product.projections[0].out == Slot::kGate && product.projections[1].out == Slot::kUp &&
                       product.projections[1].bias < 0 &&
                       (mode != FfnMode::kPredicted || product.projections[0].bias < 0);
    if (!gated || down.kind != OpKind::kLinear || down.n_projections != 1 || down.in != Slot::kGate) continue;
    ffns.push_back(
        {act.layer, product.projections[0].weight, product.projections[1].weight, down.projections[0].weight});
  }
  return ffns;
}

void NeuronCount::Add(const NeuronCount& other) {
  neurons += other.neurons;
  active += other.active;
  predicted += other.predicted;
  stored += other.stored;
  read += other.read;
  bytes += other.bytes;
  bytes_read += other.bytes_read;
  predictor_bytes += other.predictor_bytes;
}

void RunSlice(const BundleKernel& kernel, const Bundles& bundles, int64_t slice, std::span<const BundleRow> rows,
              const Firing& firing, NeuronCount& count, uint32_t* fired) {
  const BundleShape& shape = bundles.shape();
  const int64_t begin = slice * (kSliceNeurons / kBundleNeurons);
  const int64_t end = std::min<int64_t>(begin + kSliceNeurons / kBundleNeurons, shape.n_groups());
  for (const BundleRow& row : rows) std::fill_n(row.partial + slice * shape.n_outputs(), shape.n_outputs(), 0.f);
  for (int64_t group = begin; group < end; ++group) {
    uint32_t any = 0;
    for (const BundleRow& row : rows) {
      const uint32_t active = ActiveMask(row.activation + group * kBundleNeurons, firing.level);
      const uint32_t chosen = firing.skip ? active : ~0u;
      count.active += std::popcount(active);
      for (uint32_t left = fired ? active : 0; left; left &= left - 1)
        ++fired[group * kBundleNeurons + std::countr_zero(left)];
      if (chosen == 0) continue;
      any |= chosen;
      RunGroup(kernel, bundles, row, firing, group, active, row.partial + slice * shape.n_outputs());
    }
    count.read += std::popcount(any);
    if (any) count.bytes_read += shape.scale_bytes() + std::popcount(any) * shape.bundle_bytes();
  }
  count.neurons += (end - begin) * kBundleNeurons * static_cast<int64_t>(rows.size());
  count.stored += (end - begin) * kBundleNeurons;
  count.bytes += (end - begin) * shape.group_bytes();
}

void MergeSlices(const BundleShape& shape, const float* partial, bool accumulate, int64_t begin, int64_t end,
                 float* y) {
  if (!accumulate) std::fill(y + begin, y + end, 0.f);
  for (int64_t slice = 0; slice < shape.n_slices(); ++slice, partial += shape.n_outputs())
    for (int64_t e = begin; e < end; ++e) y[e] += partial[e];
}

}  // namespace thermocline
