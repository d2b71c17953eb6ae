// Rounding weights so that what a layer puts out changes least, not the weights themselves: each column's rounding
// error is made up for by the columns after it, as far as their inputs go together (GPTQ, arXiv:2210.17323, in the form
// that arXiv:2307.13304 calls LDLQ).
//
// The expected squared error of an output is e H e^T, where e = w - w' is a row's errors and H = E[x x^T] the inputs'
// second moments. With H = (U + I) D (U + I)^T, U strictly upper triangular and D diagonal, it is
//
//   sum over columns i of D[i] (t[i] - w'[i])^2,   t[i] = w[i] + sum over j < i of e[j] U[j, i]
//
// so columns are rounded in order, each to the nearest of its target t, whose errors D weighs.
//
// What was rounded early knew nothing of what came later. So the codes are then gone through again, each moved to where
// it makes the sum least with all others as they are, and each block's scale likewise.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/vector_ops.h"
#include "models/dtype.h"

namespace thermocline {

struct Feedback {
  int64_t k = 0;
  std::vector<float> u;        // (k, k), row j column i holds (U + I)[j, i] for j <= i
  std::vector<float> weights;  // (k) D over its mean
  std::vector<float> norms;    // (k) sum over i of weights[i] (U + I)[j, i]^2
  double scale = 0;            // the mean of D
};

// gram: (k, k), the upper triangle of H; becomes U. `damping` times the mean of its diagonal is added to the diagonal,
// for inputs that the text showed too little of.
Feedback FactorFeedback(std::vector<float> gram, int64_t k, float damping, const VectorOps& ops);

// How inputs have changed, from x to x'.
struct Drift {
  Feedback now;               // of x'
  std::vector<float> inputs;  // (k, k) E[(x - x') x'^T]
};

// rows: (n, k) weights, moved from w to where they make of x' what w made of x, as nearly as they can in the mean: by
// w E[(x - x') x'^T] H^-1, H as damped as in `now`. A weight that would become larger than kMaxEncodedWeight stays.
void FollowDrift(const Drift& drift, std::span<float> rows, const VectorOps& ops);

// rows: (n, k) weights, finite; out: n rows of `type`. A row's bytes do not depend on the others. Returns the expected
// squared error of the outputs, summed over rows.
double QuantizeWithFeedback(DType type, const Feedback& feedback, std::span<const float> rows, uint8_t* out,
                            const VectorOps& ops);

}  // namespace thermocline
