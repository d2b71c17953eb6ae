// Four floats at a time: what every x86-64 has. The searches for scales are nearly all of the time that quantizing
// takes.
#pragma once

namespace thermocline {

using Lanes = float __attribute__((vector_size(16)));

inline Lanes Load(const float* p) { return Lanes{p[0], p[1], p[2], p[3]}; }
inline Lanes All(float x) { return Lanes{x, x, x, x}; }
inline float Sum(Lanes v) { return (v[0] + v[1]) + (v[2] + v[3]); }

// Below this a scale is zero in F16, and its inverse may overflow.
inline constexpr float kLeastScale = 1e-20f;

}  // namespace thermocline
