#include "cpu/linear.h"

#include <algorithm>
#include <vector>

#include "cpu/jit/linear_jit.h"

namespace thermocline {

struct LinearKernel::Code {
  std::vector<std::unique_ptr<LinearJit>> jit;
  const PackedFormat* format;
};

LinearKernel::LinearKernel(Isa isa, const PackedFormat& format) : code_(std::make_unique<Code>()), max_m_(1) {
  code_->format = &format;
  name_ = "reference";
  if (isa == Isa::kScalar) return;
  max_m_ = isa == Isa::kAvx2 ? kLinearMaxMAvx2 : kLinearMaxM;
  name_ = isa == Isa::kAvx2 ? "avx2" : "avx512_vnni";
  for (int m = 1; m <= max_m_; ++m) {
    const LinearSpec spec{&format, m};
    code_->jit.push_back(isa == Isa::kAvx2 ? MakeLinearAvx2(spec) : MakeLinearAvx512(spec));
    fn_[m] = code_->jit.back()->Finish();
  }
}

LinearKernel::~LinearKernel() = default;
LinearKernel::LinearKernel(LinearKernel&&) noexcept = default;

void LinearKernel::Run(LinearArgs args, int64_t m) const {
  while (m > 0) {
    const int64_t tile = std::min<int64_t>(m, max_m_);
    if (fn_[tile])
      fn_[tile](&args);
    else
      LinearReference(*code_->format, args);
    args.x += tile * args.x_stride_bytes;
    args.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(args.y) + tile * args.y_stride_bytes);
    m -= tile;
  }
}

}  // namespace thermocline
