// Scales for a group of weights: the searches under models/quantize.cc.
#pragma once

namespace thermocline {

// Weights x[0, n) with factors w of their squared errors; n is a multiple of 4.
struct WeightGroup {
  const float* x;
  const float* w;
  int n;
};

// x ~ scale * q, q a whole number in [lo, hi] with lo < 0 < hi. The scale may be negative: lo reaches further than hi.
float FitSymmetric(const WeightGroup& group, int lo, int hi);

struct AffineScale {
  float scale, min;  // x ~ scale * q + min, q a whole number in [0, max_code], scale >= 0
};
// `min_is_negative`: min <= 0, as the K types store it.
AffineScale FitAffine(const WeightGroup& group, int max_code, bool min_is_negative);
// The scale that spans the range of x: what a fit must be no worse than.
AffineScale SpanAffine(const WeightGroup& group, int max_code, bool min_is_negative);

// sum of w (x - scale * q - min)^2 where each q is the nearest in [0, max_code].
double RoundingError(const WeightGroup& group, float scale, float min, int max_code);

// Weighted sums over a group's codes, each the nearest in [0, max_code] at the given scale and min.
struct CodeSums {
  double q, qq, xq;  // of w q, w q^2, w x q
};
CodeSums SumCodes(const WeightGroup& group, float scale, float min, int max_code);

}  // namespace thermocline
