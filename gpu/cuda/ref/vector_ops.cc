// The specification of gpu/cuda/vector_ops.h: no SIMD, sums in double, each function reads like its formula.
#include "gpu/cuda/vector_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace thermocline::cuda {

void NormReference(const float* x, const float* weight, const float* bias, float eps, int n, bool accumulate,
                   float* out) {
  double mean = 0, squares = 0;
  if (bias)
    for (int i = 0; i < n; ++i) mean += double{x[i]} / n;
  for (int i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double factor = 1 / std::sqrt(squares / n + eps);
  for (int i = 0; i < n; ++i) {
    const double normed = (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0);
    out[i] = static_cast<float>(accumulate ? out[i] + normed : normed);
  }
}

void RopeReference(float* head, const float* cos_sin, int n_dims, RopeKind kind) {
  const int n_pairs = n_dims / 2;
  for (int i = 0; i < n_pairs; ++i) {
    float& a = kind == RopeKind::kInterleaved ? head[2 * i] : head[i];
    float& b = kind == RopeKind::kInterleaved ? head[2 * i + 1] : head[i + n_pairs];
    const double cosine = cos_sin[2 * i], sine = cos_sin[2 * i + 1], rotated = a * cosine - b * sine;
    b = static_cast<float>(a * sine + b * cosine);
    a = static_cast<float>(rotated);
  }
}

float ActReference(float gate, Activation activation) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  const double x = gate;
  switch (activation) {
    case Activation::kSilu: return static_cast<float>(x / (1 + std::exp(-x)));
    case Activation::kGeluTanh:
      return static_cast<float>(x * (1 + std::tanh(kSqrt2OverPi * (x + 0.044715 * x * x * x))) / 2);
    case Activation::kRelu: return gate < 0 ? 0 : gate;
  }
  return 0;
}

void QuantizeReference(const float* x, int n, int64_t k, float large_group, int tile_row, uint8_t* tile) {
  const int64_t n_groups = ActivationGroups(k), n_own = CeilDiv(n, 64) * 2;
  const auto value = [&](int64_t i) { return i >= n || std::isnan(x[i]) ? 0 : std::clamp(x[i], -0x1p120f, 0x1p120f); };
  std::vector<float> largest(n_groups);
  double squares = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int i = 0; i < kGroup; ++i) largest[g] = std::max(largest[g], std::fabs(value(g * kGroup + i)));
    squares += double{largest[g]} * largest[g];
  }
  const double limit = large_group >= 0 ? large_group * squares / static_cast<double>(n_own) : -1;
  for (int64_t g = 0; g < n_groups; ++g) {
    uint8_t* group = tile + g * kGroupBytes;
    const bool zero = largest[g]<0x1p-100f, lo = double{largest[g]} * largest[g]> limit;
    const float scale = zero ? 0 : largest[g] / kActivationMax;
    const float inverse = zero ? 0 : (lo ? kActivationMax : kActivationMax / 256) / largest[g];
    int sums[2] = {};  // of the planes
    for (int i = 0; i < kGroup; ++i) {
      const int rounded = static_cast<int>(std::nearbyint(value(g * kGroup + i) * inverse));
      const int q = lo ? rounded : 256 * rounded, hi = (q + 128) >> 8;
      group[ActivationByte(tile_row, i, 0)] = static_cast<uint8_t>(hi);
      group[ActivationByte(tile_row, i, 1)] = static_cast<uint8_t>(q - 256 * hi);
      sums[0] += hi;
      sums[1] += q - 256 * hi;
    }
    for (int plane = 0; plane < 2; ++plane) {
      uint8_t* meta = group + kMetaOffset + kPlaneMeta * plane + 16 * (tile_row / 2) + 4 * (tile_row % 2);
      const float factor = plane == 0 ? 256 * scale : scale;
      std::memcpy(meta, &factor, 4);
      std::memcpy(meta + 8, &sums[plane], 4);
    }
  }
}

float ReadActivation(const uint8_t* tile, int tile_row, int64_t k) {
  const uint8_t* group = tile + k / kGroup * kGroupBytes;
  const int i = static_cast<int>(k % kGroup);
  float scale;
  std::memcpy(&scale, group + kMetaOffset + kPlaneMeta + 16 * (tile_row / 2) + 4 * (tile_row % 2), 4);
  const int q = 256 * static_cast<int8_t>(group[ActivationByte(tile_row, i, 0)]) +
                static_cast<int8_t>(group[ActivationByte(tile_row, i, 1)]);
  return scale * static_cast<float>(q);
}

}  // namespace thermocline::cuda
