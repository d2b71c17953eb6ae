// y (+)= W x + b for packed integer weights and activations in two s8 planes, on tensor cores.
#pragma once

#include <cstdint>

#include "gpu/cuda/layout.h"
#include "gpu/cuda/queue.h"

namespace thermocline::cuda {

// y[m, n] (+)= sum_k W[n, k] x[m, k] + bias[n] for m in [0, m), n in [0, n).
//
// Dot products of a group's codes with either plane are exact, in int32; the rest is in float, over groups in order but
// for a few interleaved parts of K apart, which are added in order. How many there are depends on the shape of W, and
// what is in a sum of its own on whether m > 8, so up to 8 rows give the same bits in any company.
struct Projection {
  const uint8_t* panels;  // interleaved, on the device
  int n;
  float* y;  // (m, n), y_stride floats apart
  int64_t y_stride;
  const float* bias = nullptr;  // (n) or none
};
inline constexpr int kMaxProjections = 3, kMaxWarps = 8;
struct LinearArgs {
  const uint8_t* x;  // (m) rows of activations, as gpu/cuda/layout.h has them
  int m;             // at least 1
  int64_t k;
  int n_projections;
  Projection projections[kMaxProjections];  // all of one type
  bool accumulate;
  int warps_k = 0;  // warps that share a panel's K, up to kMaxWarps: a power of 2; 0: what suits the shape
};
void LaunchLinear(const Queue& queue, DType type, const LinearArgs& args);

// Interleaves n_panels panels of k columns in place.
void LaunchInterleave(const Queue& queue, DType type, uint8_t* panels, int64_t n_panels, int64_t k);
// The same in the host's memory, for tests and for machines without a device.
void InterleaveOnHost(DType type, uint8_t* panels, int64_t n_panels, int64_t k);

// cuda/ref/linear.cc: the specification. w: (n, k) weights; x: (m, k) activations, the values that q stands for.
void LinearReference(const float* w, const float* x, const float* bias, int m, int n, int64_t k, bool accumulate,
                     float* y);

}  // namespace thermocline::cuda
