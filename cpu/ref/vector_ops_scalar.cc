// The specification of cpu/vector_ops.h: no SIMD, sums in double, each function reads like its formula.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/vector_ops_tables.h"
#include "models/dtype.h"

namespace thermocline {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void RmsNorm(const float* x, const float* weight, float eps, int n, bool accumulate, float* out) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += double{x[i]} * x[i];
  const double factor = 1 / std::sqrt(sum / n + eps);
  for (int i = 0; i < n; ++i) {
    const double normed = x[i] * factor * weight[i];
    out[i] = static_cast<float>(accumulate ? out[i] + normed : normed);
  }
}

void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int n, float* out) {
  double sum = 0, squares = 0;
  for (int i = 0; i < n; ++i) sum += x[i];
  const double mean = sum / n;
  for (int i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double factor = 1 / std::sqrt(squares / n + eps);
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>((x[i] - mean) * factor * weight[i] + bias[i]);
}

void Rope(float* head, const float* cos_sin, int n_dims, RopeKind kind) {
  const int n_pairs = n_dims / 2;
  for (int i = 0; i < n_pairs; ++i) {
    float& a = kind == RopeKind::kInterleaved ? head[2 * i] : head[i];
    float& b = kind == RopeKind::kInterleaved ? head[2 * i + 1] : head[i + n_pairs];
    const double cosine = cos_sin[2 * i], sine = cos_sin[2 * i + 1];
    const double rotated = a * cosine - b * sine;
    b = static_cast<float>(a * sine + b * cosine);
    a = static_cast<float>(rotated);
  }
}

// GELU's x (1 + tanh u) / 2 is written x / (1 + e^-2u), the same without cancellation.
double Activate(double x, Activation activation) {
  constexpr double kSqrt2OverPi = 0.79788456080286535588;
  switch (activation) {
    case Activation::kSilu: return x / (1 + std::exp(-x));
    case Activation::kGeluTanh: return x / (1 + std::exp(-2 * kSqrt2OverPi * (x + 0.044715 * x * x * x)));
    case Activation::kRelu: return x < 0 ? 0 : x;
  }
  return 0;
}

void GatedAct(const float* gate, const float* up, int n, Activation activation, float* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(Activate(gate[i], activation) * up[i]);
}

void Act(const float* x, int n, Activation activation, float* out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(Activate(x[i], activation));
}

void Add(const float* x, int n, float* out) {
  for (int i = 0; i < n; ++i) out[i] += x[i];
}

// Sums of 32 values stay finite up to here.
constexpr float kLargest = 0x1p120f;
// Below it 1 / scale overflows; such a group is zero.
constexpr float kSmallest = 0x1p-100f;

float Sanitize(float x) { return std::isnan(x) ? 0 : std::clamp(x, -kLargest, kLargest); }

// These lines are the definition to the last bit: vector code repeats every rounding.
void Quantize(const float* x, int64_t k, float large_group, uint8_t* out) {
  const int64_t n_groups = ActivationGroups(k);
  const auto value = [&](int64_t i) { return i < k ? Sanitize(x[i]) : 0; };
  std::memset(out, 0, ActivationRowBytes(k));
  std::vector<float> largest(n_groups);
  double squares = 0;
  for (int64_t g = 0; g < n_groups; ++g) {
    for (int64_t i = g * kActivationGroup; i < (g + 1) * kActivationGroup; ++i)
      largest[g] = std::max(largest[g], std::fabs(value(i)));
    squares += double{largest[g]} * largest[g];
  }
  const double limit = large_group < 0 ? -1 : large_group * squares / static_cast<double>(n_groups);
  for (int64_t g = 0; g < n_groups; ++g) {
    const bool zero = largest[g]<kSmallest, lo = double{largest[g]} * largest[g]> limit;
    const float scale = zero ? 0 : largest[g] / kActivationMax;
    const float inverse = zero ? 0 : (lo ? kActivationMax : kActivationMax / 256) / largest[g];
    int sums[2] = {0, 0};
    for (int i = 0; i < kActivationGroup; ++i) {
      const int64_t at = g * kActivationGroup + i;
      const int rounded = static_cast<int>(std::nearbyint(value(at) * inverse)), q = lo ? rounded : 256 * rounded;
      const int hi = (q + 128) >> 8;
      out[ActivationOffset(at, 0)] = static_cast<uint8_t>(hi);
      out[ActivationOffset(at, 1)] = static_cast<uint8_t>(q - 256 * hi);
      sums[i / 16] += q;
    }
    const auto meta = [&](int64_t group) {
      return reinterpret_cast<ActivationMeta*>(out + ActivationMetaOffset(group));
    };
    *meta(g) = MakeActivationMeta(scale, sums[0], sums[1], meta(g)->lo_groups);
    meta(g / kMaskGroups * kMaskGroups)->lo_groups |= static_cast<uint16_t>(lo << g % kMaskGroups);
  }
}

uint16_t StoredHalf(float x) {
  constexpr float kLargestHalf = 65504;
  if (std::isnan(x)) {  // as vcvtps2ph does it
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>(bits >> 16 & 0x8000) | 0x7E00 | (bits >> 13 & 0x3FF);
  }
  return FloatToHalf(std::clamp(x, -kLargestHalf, kLargestHalf));
}

// Where the keys, or the values, of one head stand in a page: offsets in bytes.
struct Side {
  DType type;
  int head_dim;
  bool is_keys;
  int64_t begin;

  int64_t Index(int slot, int d) const {
    return is_keys ? int64_t{d} * kPageTokens + slot : int64_t{slot} * head_dim + d;
  }
  int64_t Half(int slot, int d) const { return begin + 2 * Index(slot, d); }
  int64_t Scale(int slot, int d) const { return begin + 2 * (int64_t{d / kKvGroup} * kPageTokens + slot); }
  int64_t Byte(int slot, int d) const {
    const int64_t bytes = begin + 2 * KvGroups(head_dim) * kPageTokens;
    return bytes +
           (is_keys ? d / 2 * (2 * kPageTokens) + 2 * slot + d % 2 : slot / 2 * 2 * head_dim + 2 * d + slot % 2);
  }
};
Side Keys(KvTypes types, int head_dim) { return {types.key, head_dim, true, 0}; }
Side Values(KvTypes types, int head_dim) { return {types.value, head_dim, false, KvSideBytes(types.key, head_dim)}; }

uint16_t& HalfAt(uint8_t* page, int64_t offset) { return *reinterpret_cast<uint16_t*>(page + offset); }
float FloatAt(const uint8_t* page, int64_t offset) {
  return HalfToFloat(*reinterpret_cast<const uint16_t*>(page + offset));
}

// What stands for dim d of a token.
float Stored(const Side& side, const uint8_t* page, int slot, int d) {
  if (side.type == DType::kF16) return FloatAt(page, side.Half(slot, d));
  return FloatAt(page, side.Scale(slot, d)) * static_cast<int8_t>(page[side.Byte(slot, d)]);
}

// These lines are the definition to the last bit: vector code repeats every rounding.
void StoreGroup(const Side& side, const float* x, int begin, int end, int slot, uint8_t* page) {
  const auto value = [x](int d) { return std::isnan(x[d]) ? 0 : std::clamp(x[d], -65504.f, 65504.f); };
  float largest = 0;
  for (int d = begin; d < end; ++d) largest = std::max(largest, std::fabs(value(d)));
  HalfAt(page, side.Scale(slot, begin)) = FloatToHalf(largest / 127);
  const float scale = FloatAt(page, side.Scale(slot, begin)), inverse = scale == 0 ? 0 : 1 / scale;
  for (int d = begin; d < end; ++d) {
    const float q = std::nearbyint(std::clamp(value(d) * inverse, -127.f, 127.f));
    page[side.Byte(slot, d)] = static_cast<uint8_t>(static_cast<int8_t>(q));
  }
}

void StoreSide(const Side& side, const float* x, int slot, uint8_t* page) {
  if (side.type == DType::kF16)
    for (int d = 0; d < side.head_dim; ++d) HalfAt(page, side.Half(slot, d)) = StoredHalf(x[d]);
  else
    for (int d = 0; d < side.head_dim; d += kKvGroup)
      StoreGroup(side, x, d, std::min(d + kKvGroup, side.head_dim), slot, page);
}

void StoreKv(KvTypes types, const float* key, const float* value, int head_dim, int slot, uint8_t* page) {
  StoreSide(Keys(types, head_dim), key, slot, page);
  StoreSide(Values(types, head_dim), value, slot, page);
}

// Query i over one page, whose visible slots are [begin, end).
void AttendPage(const AttentionSplit& args, int i, const uint8_t* page, int begin, int end) {
  const int head_dim = args.head_dim;
  const Side keys = Keys(args.types, head_dim), values = Values(args.types, head_dim);
  const float* q = args.q + int64_t{i} * head_dim;
  float* acc = args.acc + int64_t{i} * head_dim;
  double weights[kPageTokens];
  double largest = -std::numeric_limits<double>::infinity();
  for (int t = begin; t < end; ++t) {
    double score = 0;
    for (int d = 0; d < head_dim; ++d) score += double{q[d]} * Stored(keys, page, t, d);
    weights[t] = score;
    largest = std::max(largest, score);
  }
  const float max = std::max(args.max[i], static_cast<float>(largest));
  const double rescale = args.max[i] == -kInfinity ? 0 : std::exp(double{args.max[i]} - max);
  double sum = args.sum[i] * rescale;
  for (int t = begin; t < end; ++t) sum += weights[t] = std::exp(weights[t] - max);
  for (int d = 0; d < head_dim; ++d) {
    double total = acc[d] * rescale;
    for (int t = begin; t < end; ++t) total += weights[t] * Stored(values, page, t, d);
    acc[d] = static_cast<float>(total);
  }
  args.max[i] = max;
  args.sum[i] = static_cast<float>(sum);
}

void Attention(const AttentionSplit& args) {
  std::fill_n(args.max, args.n_queries, -kInfinity);
  std::fill_n(args.sum, args.n_queries, 0.f);
  std::fill_n(args.acc, int64_t{args.n_queries} * args.head_dim, 0.f);
  for (int i = 0; i < args.n_queries; ++i) {
    for (int p = 0; p < args.n_pages; ++p) {
      const int64_t first = args.first_token + int64_t{p} * kPageTokens, position = args.position[i];
      const int64_t end = std::clamp<int64_t>(position + 1 - first, 0, kPageTokens);
      const int64_t begin =
          args.window > 0 ? std::clamp<int64_t>(position - args.window + 1 - first, 0, kPageTokens) : 0;
      if (begin < end) AttendPage(args, i, args.pages[p], static_cast<int>(begin), static_cast<int>(end));
    }
  }
}

void Merge(int n_queries, int head_dim, const float* max2, const float* sum2, const float* acc2, float* max, float* sum,
           float* acc) {
  for (int i = 0; i < n_queries; ++i, acc += head_dim, acc2 += head_dim) {
    if (max2[i] == -kInfinity) continue;
    const float larger = std::max(max[i], max2[i]);
    const double factor = max[i] == -kInfinity ? 0 : std::exp(double{max[i]} - larger);
    const double factor2 = std::exp(double{max2[i]} - larger);
    sum[i] = static_cast<float>(sum[i] * factor + sum2[i] * factor2);
    for (int d = 0; d < head_dim; ++d) acc[d] = static_cast<float>(acc[d] * factor + acc2[d] * factor2);
    max[i] = larger;
  }
}

float Element(DType type, const uint8_t* row, int64_t k) {
  if (type == DType::kF32) {
    float value;
    std::memcpy(&value, row + k * 4, sizeof value);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, row + k * 2, sizeof bits);
  return type == DType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
}

void FloatGemv(DType type, const uint8_t* w, int64_t stride_bytes, int64_t n, int64_t k, const float* x, float* y) {
  for (int64_t row = 0; row < n; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += double{Element(type, w + row * stride_bytes, i)} * x[i];
    y[row] = static_cast<float>(sum);
  }
}

void AddOuterProducts(const OuterProducts& args) {
  for (int64_t i = 0; i < args.m; ++i)
    for (int64_t j = 0; j < args.n; ++j) {
      double sum = args.c[i * args.c_stride + j];
      for (int64_t p = 0; p < args.n_products; ++p)
        sum += double{args.a[p * args.a_stride + i]} * args.b[p * args.b_stride + j];
      args.c[i * args.c_stride + j] = static_cast<float>(sum);
    }
}

}  // namespace

const VectorOps kVectorOpsScalar = {Isa::kScalar, RmsNorm,   LayerNorm, Rope,      GatedAct,        Act, Add, Quantize,
                                    StoreKv,      Attention, Merge,     FloatGemv, AddOuterProducts};

}  // namespace thermocline
