// The specification of the packed matrix-vector product: integer sums exact, everything else in double.
#include "cpu/linear.h"

#include "cpu/activations.h"

namespace thermocline {
namespace {

// q[k] of one activation row.
int ActivationCode(const uint8_t* row, int64_t k) {
  return 256 * static_cast<int8_t>(row[ActivationOffset(k, 0)]) + static_cast<int8_t>(row[ActivationOffset(k, 1)]);
}

double Dot(const PackedFormat& format, const uint8_t* panel, int64_t n_blocks, int r, const uint8_t* x) {
  double sum = 0;
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int g = 0; g < format.block_k() / format.group; ++g) {
      const PackedGroup w = ReadGroup(format, panel + b * format.block_bytes(), r, g);
      const int64_t k0 = b * format.block_k() + g * format.group;
      int64_t dot = 0;
      for (int j = 0; j < format.group; ++j) dot += int64_t{w.code[j] - format.zero_point} * ActivationCode(x, k0 + j);
      const auto& meta = *reinterpret_cast<const ActivationMeta*>(x + ActivationMetaOffset(k0 / kActivationGroup));
      sum += static_cast<double>(dot) * meta.scale * w.scale;
      if (format.has_min) sum += double{w.min} * (format.group == 32 ? meta.sum32 : meta.sum16[g % 2]);
    }
  return sum;
}

}  // namespace

void LinearReference(const PackedFormat& format, const LinearArgs& args) {
  for (int64_t p = 0; p < args.n_panels; ++p)
    for (int r = 0; r < kPanelRows; ++r) {
      const uint8_t* panel = args.panel + p * args.n_blocks * format.block_bytes();
      float& y = args.y[p * kPanelRows + r];
      const double dot = Dot(format, panel, args.n_blocks, r, args.x);
      y = static_cast<float>(args.accumulate ? y + dot : dot);
    }
}

}  // namespace thermocline
