// y (+)= W x for packed integer weights and activations in two s8 planes: the product every layer spends its time in.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "cpu/activations.h"
#include "cpu/isa.h"
#include "cpu/packed.h"

namespace thermocline {

// y[m, n] (+)= sum_k W[n, k] x[m, k] for m in [0, M), n in the rows of `n_panels` panels.
//
// All kernels compute, for each m and n, in float and in this order, beginning with sum = 0 or, accumulating, y:
//   for each group g of K:   dot = sum over g of (code - zero_point) * q            exact, in int32
//                            sum = fma(float(dot) * x.scale[g], w.scale[g], sum)
//                            sum = fma(w.min[g], x.sum[g], sum)                     types with a min
// so that a row's result is the same bits for any M and for every instruction set.
struct LinearArgs {
  const uint8_t* panel;  // first panel
  const uint8_t* x;      // (M) rows as cpu/activations.h has them, 64-byte aligned
  int64_t x_stride_bytes;
  float* y;  // (M, 16 * n_panels): the last panel's padding rows are written too
  int64_t y_stride_bytes;
  int64_t n_panels;    // at least 1
  int64_t n_blocks;    // blocks per panel
  int64_t accumulate;  // 0: y = ..., 1: y += ...
};

// The kernels of one format; generated at construction, immutable afterwards.
//
// Few rows go, some at a time, through code that unpacks weights into registers; of one it is bound by memory. More go
// in tiles over pairs of panels that were unpacked, 512 k at a time, into a buffer that stays in L1: there the bound is
// vpdpbusd.
class LinearKernel {
 public:
  // `poison`, for tests: NaN in every vector register whenever generated code begins.
  LinearKernel(Isa isa, const PackedFormat& format, bool poison = false);
  ~LinearKernel();
  LinearKernel(LinearKernel&&) noexcept;

  // M = m >= 1 rows in this form; kBf16 only if that is what PromptFormFor says of its instruction set.
  void Run(const LinearArgs& args, int64_t m, PromptForm form = PromptForm::kPlanes) const;
  std::string_view name() const;  // "amx_bf16, avx512_vnni", "avx512_vnni", "avx_vnni", "avx2", "reference"

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

// n rows in runs of one form: is_prompt(i) says which of them are in `form`, the others are in planes.
template <typename IsPrompt>
void RunByForm(const LinearKernel& kernel, LinearArgs args, int64_t n, PromptForm form, const IsPrompt& is_prompt) {
  if (form == PromptForm::kPlanes) return kernel.Run(args, n);
  for (int64_t row = 0, run; row < n; row += run) {
    const bool prompt = is_prompt(row);
    for (run = 1; row + run < n && is_prompt(row + run) == prompt;) ++run;
    kernel.Run(args, run, prompt ? form : PromptForm::kPlanes);
    args.x += run * args.x_stride_bytes;
    args.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(args.y) + run * args.y_stride_bytes);
  }
}

// Where all groups keep 16 bits (kAllGroups), BF16 would not.
constexpr PromptForm PromptFormFor(Isa isa, float large_group) {
  return isa == Isa::kAmx && large_group >= 0 ? PromptForm::kBf16 : PromptForm::kPlanes;
}

// K values to PromptForm::kBf16, at `out`, 64-byte aligned. Needs Isa::kAmx; rounds to nearest even, NaN stays NaN.
void RoundToBf16(const float* x, int64_t k, uint8_t* out);

// cpu/ref: the specifications, for one row of x. Integer sums in int64, the rest in double.
void LinearReference(const PackedFormat& format, const LinearArgs& args);
void Bf16LinearReference(const PackedFormat& format, const LinearArgs& args);  // of a row in PromptForm::kBf16

}  // namespace thermocline
