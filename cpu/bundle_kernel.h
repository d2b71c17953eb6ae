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
//   down    h of the group's neurons is rounded to 16 bits with one scale, as an input of down is everywhere
//           (cpu/activations.h): dot[e] = sum of (code - zero_point) * q[i] in int32;
//           y[e] = fma(float(dot[e]) * h.scale, scale[e], y[e]), and y[e] = fma(h.sum, min[e], y[e]) with a min
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

// Bundles that will be read next, to be brought into L2 meanwhile, line by line.
struct BundlesAhead {
  const uint8_t* const* next;  // not begun yet, up to a null pointer
  const uint8_t *at, *end;     // of the one begun; null at first
  int64_t lines_per_step;      // at least 1. A step: a block of a neuron of up, a block of two neurons of down
  const uint8_t* scales;       // of down, of their group: Down's
};

struct BundleUpArgs {
  const uint8_t* const* bundle;  // (n)
  const uint8_t* x;              // SpreadBytes(n_embd), 64-byte aligned
  float* out;                    // (n)
  int64_t n;
  BundlesAhead* ahead;
};

struct BundleDownArgs {
  const uint8_t* const* bundle;  // (n), of one group
  const int16_t* q;              // (n), |q| <= kActivationMax: h = scale * q
  const uint8_t* scales;         // the group's
  float* y;                      // (n_outputs), 64-byte aligned
  int64_t n;                     // even and at least 2: an odd neuron has any other beside it, with q = 0
  float scale, sum;              // sum: scale * the sum of q
  int32_t correction;            // -zero_point * the sum of q
  BundlesAhead* ahead;
};

// Of one shape; generated at construction, immutable afterwards.
class BundleKernel {
 public:
  BundleKernel(Isa isa, const BundleShape& shape);
  ~BundleKernel();
  BundleKernel(BundleKernel&&) noexcept;

  // Also brings the down codes of the same neurons into L1.
  void Up(const BundleUpArgs& args) const;
  // Of a shape with a down.
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
