// The specification of what is computed over bundles: integer sums exact, everything else in double.
#include "cpu/bundle_kernel.h"

#include <vector>

#include "cpu/activations.h"

namespace thermocline {
namespace {

// Scale and min of an F16 array, and the min's place in it; 0 where the type has none.
double Half(const uint8_t* halves, int64_t i) {
  return HalfToFloat(static_cast<uint16_t>(halves[2 * i] | halves[2 * i + 1] << 8));
}

int UpCode(int bits, const uint8_t* lines, int lane, int i) {  // i in [0, 32) of the group
  const int quad = i / 4;
  const uint8_t* at = lines + 4 * lane + i % 4;
  if (bits == 8) return at[64 * quad];
  int code = at[64 * (quad % 4)] >> (quad < 4 ? 0 : 4) & 15;
  if (bits == 5) code |= (at[256] >> quad & 1) << 4;
  return code;
}

template <typename T>
T Lane(const uint8_t* line, int lane) {
  return reinterpret_cast<const T*>(line)[lane];
}

}  // namespace

void BundleUpReference(const BundleShape& shape, const BundleUpArgs& args) {
  const PackedFormat& format = shape.up_format();
  for (int64_t n = 0; n < args.n; ++n) {
    double sum = 0;
    for (int64_t block = 0; block < shape.up_blocks(); ++block) {
      const uint8_t* x = args.x + block * kSpreadBlockBytes;
      const uint8_t* codes = args.bundle[n] + block * format.chunk_bytes();
      const uint8_t* scales = args.bundle[n] + shape.up_code_bytes() + block * shape.up_scale_bytes();
      for (int lane = 0; lane < 16; ++lane) {
        int64_t dot = 0;
        for (int i = 0; i < kChunk; ++i) {
          const int at = 64 * (i / 4) + 4 * lane + i % 4;
          const int q = 256 * Lane<int8_t>(x + kSpreadHi, at) + Lane<int8_t>(x + kSpreadLo, at);
          dot += int64_t{UpCode(format.bits, codes, lane, i) - format.zero_point} * q;
        }
        sum += static_cast<double>(dot) * Lane<float>(x + kSpreadScale, lane) * Half(scales, lane);
        if (format.has_min) sum += Half(scales + 32, lane) * Lane<float>(x + kSpreadSum, lane);
      }
    }
    args.out[n] = static_cast<float>(sum);
  }
}

void BundleDownReference(const BundleShape& shape, const BundleDownArgs& args) {
  const PackedFormat& format = shape.down_format();
  for (int64_t e = 0; e < shape.n_outputs(); ++e) {
    int64_t dot = 0;
    for (int64_t i = 0; i < args.n; ++i) {
      const uint8_t* codes = args.bundle[i] + shape.down_offset() + e / kDownOutputs * shape.down_block_bytes();
      const int64_t lane = e % 16, q = e % kDownOutputs / 16;
      const int code =
          format.bits == 8 ? codes[64 * (q / 4) + 4 * lane + q % 4] : codes[4 * lane + q / 2] >> q % 2 * 4 & 15;
      dot += (code - format.zero_point) * args.q[i];
    }
    double y = args.y[e] + static_cast<double>(dot) * args.scale * Half(args.scales, e);
    if (format.has_min) y += args.sum * Half(args.scales, shape.n_outputs() + e);
    args.y[e] = static_cast<float>(y);
  }
}

}  // namespace thermocline
