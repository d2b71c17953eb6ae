// C = A B for matrices of floats in memory, on the calling thread: what training multiplies. Through oneDNN in builds
// that have it.
#pragma once

#include <cstdint>

namespace thermocline {

enum class Transposed : uint8_t { kNone, kA, kB };

// c (m, n) = A (m, k) times B (k, n), row by row without gaps. With kA, `a` holds (k, m); with kB, `b` holds (n, k).
// Several threads may call it at once.
struct FloatGemmArgs {
  Transposed transposed;
  int64_t m, n, k;
  const float *a, *b;
  float* c;
};
void FloatGemm(const FloatGemmArgs& args);

}  // namespace thermocline
