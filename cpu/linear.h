// y (+)= W x for packed integer weights and two-plane activations: the product every layer spends its time in.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "cpu/isa.h"
#include "cpu/packed.h"

namespace thermocline {

// y[m, n] (+)= sum_k W[n, k] x[m, k] for m in [0, M), n in the rows of `n_panels` panels.
//
// All kernels compute, for each m and n, in float and in this order,
//   for each group g of K:   sum (+)= (float(sum of code * q over g) * x.scale[g]) * w.scale[g]      one fma
//                            sum (+)= w.min[g] * x.sum[g]                                           one fma
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

struct LinearSpec {  // baked into the code
  const PackedFormat* format;
  int m;  // rows of x, 1 .. LinearMaxM(isa)
};

using LinearFn = void (*)(const LinearArgs*);

inline constexpr int kLinearMaxM = 8;

// The kernels of one format, M = 1 .. max_m; generated at construction, immutable afterwards.
class LinearKernel {
 public:
  LinearKernel(Isa isa, const PackedFormat& format);
  ~LinearKernel();
  LinearKernel(LinearKernel&&) noexcept;

  int max_m() const { return max_m_; }
  // Rows [0, m) for any m >= 1, in tiles of max_m.
  void Run(LinearArgs args, int64_t m) const;
  std::string_view name() const { return name_; }  // "avx512_vnni", "avx2", "reference"

 private:
  struct Code;
  std::unique_ptr<Code> code_;
  LinearFn fn_[kLinearMaxM + 1] = {};
  int max_m_;
  std::string_view name_;
};

// cpu/ref/linear.cc: the specification, for one row of x. Integer sums in int64, the rest in double.
void LinearReference(const PackedFormat& format, const LinearArgs& args);

}  // namespace thermocline
