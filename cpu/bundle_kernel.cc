#include "cpu/bundle_kernel.h"

#include <cstring>

#include "cpu/activations.h"
#include "cpu/jit/bundle_jit.h"

namespace thermocline {

void SpreadActivations(const uint8_t* row, int64_t k, uint8_t* out) {
  const int64_t n_groups = ActivationGroups(k);
  for (int64_t group = 0; group < (k + kUpBlockK - 1) / kUpBlockK * 16; ++group) {
    uint8_t* to = out + group / 16 * kSpreadBlockBytes + group % 16 * 4;
    if (group >= n_groups) {
      for (int line = 0; line < kSpreadBlockBytes / 64; ++line) std::memset(to + 64 * line, 0, 4);
      continue;
    }
    for (int plane = 0; plane < 2; ++plane) {
      const uint8_t* from = row + ActivationOffset(group * kActivationGroup, plane);
      for (int quad = 0; quad < 8; ++quad)
        std::memcpy(to + (plane ? kSpreadLo : kSpreadHi) + 64 * quad, from + 4 * quad, 4);
    }
    const auto& meta = *reinterpret_cast<const ActivationMeta*>(row + ActivationMetaOffset(group));
    std::memcpy(to + kSpreadScale, &meta.scale, 4);
    std::memcpy(to + kSpreadSum, &meta.sum32, 4);
    std::memcpy(to + kSpreadCorrection, &meta.correction32, 4);
  }
}

struct BundleKernel::Code {
  BundleShape shape;
  std::string_view name = "reference";
  std::unique_ptr<JitCode> up_code, down_code;
  BundleUpFn up = nullptr;
  BundleDownFn down = nullptr;
};

BundleKernel::BundleKernel(Isa isa, const BundleShape& shape) : code_(std::make_unique<Code>()) {
  code_->shape = shape;
  if (isa == Isa::kScalar) return;
  const bool avx2 = !HasZmm(isa);  // AVX-VNNI has nothing to add where memory is the bound
  code_->name = avx2 ? "avx2" : "avx512_vnni";
  code_->up_code = avx2 ? MakeBundleUpAvx2(shape) : MakeBundleUpAvx512(shape);
  code_->up = code_->up_code->Finish<BundleUpFn>();
  if (!shape.has_down) return;
  code_->down_code = avx2 ? MakeBundleDownAvx2(shape) : MakeBundleDownAvx512(shape);
  code_->down = code_->down_code->Finish<BundleDownFn>();
}
BundleKernel::~BundleKernel() = default;
BundleKernel::BundleKernel(BundleKernel&&) noexcept = default;

void BundleKernel::Up(const BundleUpArgs& args) const {
  if (args.n == 0) return;
  if (code_->up)
    code_->up(&args);
  else
    BundleUpReference(code_->shape, args);
}

void BundleKernel::Down(const BundleDownArgs& args) const {
  if (code_->down)
    code_->down(&args);
  else
    BundleDownReference(code_->shape, args);
}

std::string_view BundleKernel::name() const { return code_->name; }

}  // namespace thermocline
