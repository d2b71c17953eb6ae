// What is computed for one row of activations over bundles of neurons (cpu/bundle.h).
//
//   up      out[i] = sum_k U[neuron i, k] x[k]
//   down    y[e] += sum_i h[i] D[neuron i, e]              neurons of one group
//
// All kernels compute in float and in this order, so every instruction set gives the same bits:
//
//   up      lane l of 16 adds the groups of 32 k at l, l + 16, ...: sum[l] = fma(float(dot) * x.scale, scale, sum[l]),
//           and sum[l] = fma(min, x.sum, sum[l]) for types with a min; dot = sum of (code - zero_point) * q in int32.
//           Then lanes l and l + 8 are added, l and l + 4, + 2, + 1.
//   down    sum[e] = fma(h[i], float(code - zero_point), sum[e]) for i in order, from 0; then
//           y[e] = fma(sum[e], scale[e], y[e]), and y[e] = fma(h_sum, min[e], y[e]) for types with a min
//
// so a neuron with h = 0 may be left out, and a group of such neurons too.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "cpu/bundle.h"
#include "cpu/isa.h"

namespace thermocline {

// A row of activations (cpu/activations.h, both planes) with a lane of 4 bytes for each group, as up wants it: per 512
// k 8 lines of hi (line q = quad q of each group), 8 of lo, then scales, sums and corrections, a line each.
inline constexpr int kSpreadHi = 0, kSpreadLo = 8 * 64, kSpreadScale = 16 * 64, kSpreadSum = 17 * 64;
inline constexpr int kSpreadCorrection = 18 * 64, kSpreadBlockBytes = 19 * 64;
constexpr int64_t SpreadBytes(int64_t k) { return (k + kUpBlockK - 1) / kUpBlockK * kSpreadBlockBytes; }
void SpreadActivations(const uint8_t* row, int64_t k, uint8_t* out);

struct BundleUpArgs {
  const uint8_t* const* bundle;  // (n)
  const uint8_t* x;              // SpreadBytes(n_embd), 64-byte aligned
  float* out;                    // (n)
  int64_t n;
};

struct BundleDownArgs {
  const uint8_t* const* bundle;  // (n), of one group
  const float* h;                // (n)
  const uint8_t* scales;         // the group's
  float* y;                      // (n_outputs), 64-byte aligned
  int64_t n;                     // at least 1
  float h_sum;                   // types with a min: h[0] + h[1] + ...
  // Of the group that comes next, to be brought into L2 meanwhile.
  const uint8_t* const* next;  // (n_next)
  const uint8_t* next_scales;
  int64_t n_next;
};

// Of one shape; generated at construction, immutable afterwards.
class BundleKernel {
 public:
  BundleKernel(Isa isa, const BundleShape& shape);
  ~BundleKernel();
  BundleKernel(BundleKernel&&) noexcept;

  // Also brings the down codes of the same neurons into L1.
  void Up(const BundleUpArgs& args) const;
  void Down(const BundleDownArgs& args) const;
  std::string_view name() const;  // "avx512_vnni", "avx2", "reference"

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

// cpu/ref/bundle_kernel.cc: the specification.
void BundleUpReference(const BundleShape& shape, const BundleUpArgs& args);
void BundleDownReference(const BundleShape& shape, const BundleDownArgs& args);

}  // namespace thermocline
