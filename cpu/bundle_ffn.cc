#include "cpu/bundle_ffn.h"

#include <emmintrin.h>

#include <algorithm>
#include <bit>

namespace thermocline {
namespace {

// Bit i: gate[i] is not <= 0, so also where it is NaN.
uint32_t ActiveMask(const float* gate) {
  uint32_t mask = 0;
  for (int i = 0; i < kBundleNeurons; i += 4) {
    const int lanes = _mm_movemask_ps(_mm_cmpnle_ps(_mm_loadu_ps(gate + i), _mm_setzero_ps()));
    mask |= static_cast<uint32_t>(lanes) << i;
  }
  return mask;
}

// Chosen neurons of one group.
struct Neurons {
  int64_t group;
  int n = 0;
  const uint8_t* bundle[kBundleNeurons];

  Neurons(const Bundles& bundles, int64_t group, uint32_t chosen) : group(group) {
    const uint8_t* first = bundles.bundle(group * kBundleNeurons);
    for (; chosen; chosen &= chosen - 1)
      bundle[n++] = first + std::countr_zero(chosen) * bundles.shape().bundle_bytes();
  }
};

// The neurons that the row reads next from `group` on: beyond the slice's end too, as who takes a slice mostly takes
// the one behind it.
Neurons FindNext(const Bundles& bundles, const BundleRow& row, bool skip, int64_t group) {
  for (; group < bundles.shape().n_groups(); ++group) {
    const uint32_t chosen = skip ? ActiveMask(row.gate + group * kBundleNeurons) : ~0u;
    if (chosen) return {bundles, group, chosen};
  }
  return {bundles, 0, 0};
}

void RunGroup(const BundleKernel& kernel, const Bundles& bundles, const BundleRow& row, bool skip, int64_t group,
              uint32_t active, float* y) {
  const uint32_t chosen = skip ? active : ~0u;
  const Neurons now(bundles, group, chosen), next = FindNext(bundles, row, skip, group + 1);
  float h[kBundleNeurons], h_sum = 0;
  kernel.Up({now.bundle, row.x, h, now.n});
  const float* gate = row.gate + group * kBundleNeurons;
  int n = 0;
  for (uint32_t left = chosen; left; left &= left - 1, ++n) {
    const int i = std::countr_zero(left);
    h[n] = active >> i & 1 ? gate[i] * h[n] : 0;
    h_sum += h[n];
  }
  kernel.Down(
      {now.bundle, h, bundles.down_scales(group), y, n, h_sum, next.bundle, bundles.down_scales(next.group), next.n});
}

}  // namespace

std::vector<GatedFfn> FindSparseFfns(const Model& model) {
  std::vector<GatedFfn> ffns;
  const std::vector<Op>& ops = model.program.ops;
  const auto width = [&](Slot slot) { return model.program.width[static_cast<size_t>(slot)]; };
  if (!BundleShape::Fits(width(Slot::kNormed), width(Slot::kGate))) return ffns;
  for (size_t i = 1; i + 1 < ops.size(); ++i) {
    const Op &product = ops[i - 1], &act = ops[i], &down = ops[i + 1];
    if (act.kind != OpKind::kGatedAct || act.activation != Activation::kRelu) continue;
    const bool gated = product.kind == OpKind::kLinear && product.n_projections == 2 &&
                       product.projections[0].out == Slot::kGate && product.projections[1].out == Slot::kUp &&
                       product.projections[1].bias < 0;
    if (!gated || down.kind != OpKind::kLinear || down.n_projections != 1 || down.in != Slot::kGate) continue;
    ffns.push_back(
        {act.layer, product.projections[0].weight, product.projections[1].weight, down.projections[0].weight});
  }
  return ffns;
}

void NeuronCount::Add(const NeuronCount& other) {
  neurons += other.neurons;
  active += other.active;
  stored += other.stored;
  read += other.read;
  bytes += other.bytes;
  bytes_read += other.bytes_read;
}

void RunSlice(const BundleKernel& kernel, const Bundles& bundles, int64_t slice, std::span<const BundleRow> rows,
              bool skip, NeuronCount& count) {
  const BundleShape& shape = bundles.shape();
  const int64_t begin = slice * (kSliceNeurons / kBundleNeurons);
  const int64_t end = std::min<int64_t>(begin + kSliceNeurons / kBundleNeurons, shape.n_groups());
  for (const BundleRow& row : rows) std::fill_n(row.partial + slice * shape.n_outputs(), shape.n_outputs(), 0.f);
  for (int64_t group = begin; group < end; ++group) {
    uint32_t any = 0;
    for (const BundleRow& row : rows) {
      const uint32_t active = ActiveMask(row.gate + group * kBundleNeurons), chosen = skip ? active : ~0u;
      count.active += std::popcount(active);
      if (chosen == 0) continue;
      any |= chosen;
      RunGroup(kernel, bundles, row, skip, group, active, row.partial + slice * shape.n_outputs());
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
