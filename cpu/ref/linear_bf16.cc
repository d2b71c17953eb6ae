// The specification of the product in BF16: weights rounded as the rows of x are, everything else in double.
#include <cmath>
#include <cstring>

#include "cpu/linear.h"
#include "models/dtype.h"

namespace thermocline {

void Bf16LinearReference(const PackedFormat& format, const LinearArgs& args) {
  const auto x = [&](int64_t k) {
    uint16_t value;
    std::memcpy(&value, args.x + PromptOffset(PromptForm::kBf16, k), sizeof(value));
    return double{Bf16ToFloat(value)};
  };
  const int n_groups = format.block_k() / format.group;
  for (int64_t n = 0; n < args.n_panels * kPanelRows; ++n) {
    const uint8_t* panel = args.panel + n / kPanelRows * args.n_blocks * format.block_bytes();
    double sum = args.accumulate ? args.y[n] : 0;
    for (int64_t group = 0; group < args.n_blocks * n_groups; ++group) {
      const PackedGroup w = ReadGroup(format, panel + group / n_groups * format.block_bytes(),
                                      static_cast<int>(n % kPanelRows), static_cast<int>(group % n_groups));
      for (int j = 0; j < format.group; ++j) {
        const auto code = static_cast<float>(w.code[j] - format.zero_point);
        const float value = std::fma(code, w.scale, format.has_min ? w.min : 0.f);
        sum += Bf16ToFloat(FloatToBf16(value)) * x(group * format.group + j);
      }
    }
    args.y[n] = static_cast<float>(sum);
  }
}

}  // namespace thermocline
