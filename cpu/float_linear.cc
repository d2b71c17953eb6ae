#include "cpu/float_linear.h"

#include <algorithm>

namespace thermocline {

FloatLinear::FloatLinear(const VectorOps& ops, int, int) : ops_(ops) {}

std::string FloatLinear::name() const { return std::string(Name(ops_.isa)); }

void FloatLinear::Gemv(const FloatLinearArgs& args, int64_t row) const {
  constexpr int64_t kTile = 64;
  float sums[kTile];
  for (int64_t n = args.begin; n < args.end; n += kTile) {
    const int64_t count = std::min(kTile, args.end - n);
    ops_.float_gemv(args.w.type(), args.w.row(n), args.w.stride_bytes(), count, args.w.k(), args.x + row * args.x_stride,
                    sums);
    float* y = args.y + row * args.y_stride + (n - args.begin);
    for (int64_t i = 0; i < count; ++i) y[i] = args.accumulate ? y[i] + sums[i] : sums[i];
  }
}

void FloatLinear::Run(const FloatLinearArgs& args, const std::function<bool(int64_t)>&, int) const {
  for (int64_t row = 0; row < args.n_rows; ++row) Gemv(args, row);
}

}  // namespace thermocline
