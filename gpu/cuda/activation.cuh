// The activation functions on the device.
#pragma once

#include "models/model.h"

namespace thermocline::cuda {

// GELU's x (1 + tanh u) / 2 is written x / (1 + e^-2u), the same without cancellation.
__device__ inline float Activate(float x, Activation activation) {
  constexpr float kTwoSqrt2OverPi = 1.5957691216057308f;
  switch (activation) {
    case Activation::kSilu: return x / (1 + expf(-x));
    case Activation::kGeluTanh: return x / (1 + expf(-kTwoSqrt2OverPi * (x + 0.044715f * x * x * x)));
    case Activation::kRelu: return x < 0 ? 0 : x;
  }
  return 0;
}

}  // namespace thermocline::cuda
