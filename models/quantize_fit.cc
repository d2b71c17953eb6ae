// Both fits try some scales around the one that spans the range, each with the codes it rounds to; with codes given,
// the best scale (and min) is a weighted least-squares solution. The best of them is then rounded and solved again.
#include "models/quantize_fit.h"

#include <algorithm>
#include <cmath>

#include "models/check.h"
#include "models/fit_lanes.h"

namespace thermocline {
namespace {

// The nearest whole number in [lo, hi]: added to 1.5 * 2^23, a float keeps no fraction.
Lanes RoundWithin(Lanes v, Lanes lo, Lanes hi) {
  const Lanes magic = All(12582912.0f);
  v = v < lo ? lo : v;
  v = v > hi ? hi : v;
  return (v + magic) - magic;
}

float Largest(const WeightGroup& group) {
  float largest = 0;
  for (int i = 0; i < group.n; ++i) largest = std::max(largest, std::abs(group.x[i]));
  return largest;
}

// Least squares for x ~ scale * q: the error is smaller by gain than that of zeros.
struct SymmetricFit {
  float scale, gain;
};
SymmetricFit SolveSymmetric(const WeightGroup& group, float inverse, int lo, int hi) {
  Lanes xq = All(0), qq = All(0);
  const Lanes inv = All(inverse), low = All(static_cast<float>(lo)), high = All(static_cast<float>(hi));
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i), w = Load(group.w + i);
    const Lanes q = RoundWithin(x * inv, low, high);
    xq += w * x * q;
    qq += w * q * q;
  }
  const float sum_xq = Sum(xq), sum_qq = Sum(qq);
  if (!(sum_qq > 0)) return {0, 0};
  return {sum_xq / sum_qq, sum_xq / sum_qq * sum_xq};
}

// Least squares for x ~ scale * q + min.
struct AffineFit {
  AffineScale at;
  float error;
};
AffineFit SolveAffine(const WeightGroup& group, float inverse, float start, int max_code, bool min_is_negative) {
  Lanes w1 = All(0), wx = All(0), wxx = All(0), wq = All(0), wqq = All(0), wxq = All(0);
  const Lanes inv = All(inverse), from = All(start), low = All(0), high = All(static_cast<float>(max_code));
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i), w = Load(group.w + i);
    const Lanes q = RoundWithin((x - from) * inv, low, high);
    w1 += w;
    wx += w * x;
    wxx += w * x * x;
    wq += w * q;
    wqq += w * q * q;
    wxq += w * x * q;
  }
  const float n = Sum(w1), x = Sum(wx), xx = Sum(wxx), q = Sum(wq), qq = Sum(wqq), xq = Sum(wxq);
  const float determinant = n * qq - q * q;
  AffineScale at = {0, n > 0 ? x / n : 0};
  if (determinant > 0) at = {(n * xq - x * q) / determinant, (qq * x - q * xq) / determinant};
  if (min_is_negative && at.min > 0) at = {qq > 0 ? xq / qq : 0, 0};
  return {at, xx + at.scale * at.scale * qq + at.min * at.min * n +
                  2 * (at.scale * at.min * q - at.scale * xq - at.min * x)};
}

}  // namespace

float FitSymmetric(const WeightGroup& group, int lo, int hi) {
  CHECK(group.n % 4 == 0);
  const float largest = Largest(group);
  if (largest < kLeastScale) return 0;
  // The largest weight would become a code between hi - 1.2 and hi + 3.6; past -lo it is cut to spare the others.
  // With 8 bits the codes are so fine that the ends alone matter.
  constexpr float kStep = 0.25f;
  const int steps = hi > 100 ? 3 : 20;
  SymmetricFit best = {0, 0};
  for (const int sign : {-1, 1}) {
    for (int i = 0; i < steps; ++i) {
      const float end = hi > 100 ? static_cast<float>(hi) - 0.5f * static_cast<float>(i)
                                 : static_cast<float>(hi) - 1.2f + kStep * static_cast<float>(i);
      const SymmetricFit fit = SolveSymmetric(group, static_cast<float>(sign) * end / largest, lo, hi);
      if (fit.gain > best.gain) best = fit;
    }
  }
  for (int i = 0; i < 3 && best.scale != 0; ++i) {
    const SymmetricFit fit = SolveSymmetric(group, 1 / best.scale, lo, hi);
    if (!(fit.gain > best.gain)) break;
    best = fit;
  }
  return best.scale;
}

AffineScale SpanAffine(const WeightGroup& group, int max_code, bool min_is_negative) {
  const auto [least, greatest] = std::minmax_element(group.x, group.x + group.n);
  const float min = min_is_negative ? std::min(*least, 0.0f) : *least;
  const float max = min_is_negative ? std::max(*greatest, min) : *greatest;
  return {(max - min) / static_cast<float>(max_code), min};
}

AffineScale FitAffine(const WeightGroup& group, int max_code, bool min_is_negative) {
  CHECK(group.n % 4 == 0);
  const AffineScale span = SpanAffine(group, max_code, min_is_negative);
  if (span.scale < kLeastScale) return {0, span.min};
  // Spans a little wider and narrower than the range, from its lower end and from its middle.
  const float range = span.scale * static_cast<float>(max_code);
  AffineFit best = {span, INFINITY};
  for (int i = 0; i < 12; ++i) {
    const float codes = static_cast<float>(max_code) - 0.6f + 0.2f * static_cast<float>(i);
    const float excess = (codes / static_cast<float>(max_code) - 1) * range;  // of the range over the span
    for (const float start : {span.min, span.min + excess / 2}) {
      const AffineFit fit = SolveAffine(group, codes / range, start, max_code, min_is_negative);
      if (fit.error < best.error && fit.at.scale > kLeastScale) best = fit;
    }
  }
  for (int i = 0; i < 3; ++i) {
    const AffineFit fit = SolveAffine(group, 1 / best.at.scale, best.at.min, max_code, min_is_negative);
    if (!(fit.error < best.error) || fit.at.scale < kLeastScale) break;
    best = fit;
  }
  return best.at;
}

double RoundingError(const WeightGroup& group, float scale, float min, int max_code) {
  const Lanes inv = All(scale == 0 ? 0 : 1 / scale), step = All(scale), from = All(min);
  const Lanes high = All(static_cast<float>(max_code));
  Lanes error = All(0);
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i);
    const Lanes d = x - (RoundWithin((x - from) * inv, All(0), high) * step + from);
    error += Load(group.w + i) * d * d;
  }
  return Sum(error);
}

CodeSums SumCodes(const WeightGroup& group, float scale, float min, int max_code) {
  const Lanes inv = All(scale == 0 ? 0 : 1 / scale), from = All(min), high = All(static_cast<float>(max_code));
  Lanes wq = All(0), wqq = All(0), wxq = All(0);
  for (int i = 0; i < group.n; i += 4) {
    const Lanes x = Load(group.x + i), w = Load(group.w + i);
    const Lanes q = RoundWithin((x - from) * inv, All(0), high);
    wq += w * q;
    wqq += w * q * q;
    wxq += w * x * q;
  }
  return {Sum(wq), Sum(wqq), Sum(wxq)};
}

}  // namespace thermocline
