// Rows that pass between host and device while kernels run, and the flags they meet at.
#pragma once

#include <cstdint>

#include "gpu/cuda/queue.h"
#include "gpu/cuda/vector_ops.h"

namespace thermocline::cuda {

// A flag is up in a step when it holds the step's number. Both stand in page-locked memory of the host, but the number
// is also on the device, where it is before the step's first kernel begins.
struct Flag {
  volatile uint32_t* up = nullptr;
  const uint32_t* step = nullptr;  // on the device
};

// Waits for the flag, then out = host rows of n floats.
void LaunchReceive(const Queue& queue, ConstRows host, int n, Rows out, int n_rows, const Flag& flag);
// host rows = in, then the flag goes up. counter: of the device, 0 before and after.
void LaunchSend(const Queue& queue, ConstRows in, int n, Rows host, int n_rows, const Flag& flag, uint32_t* counter);
void LaunchRaise(const Queue& queue, const Flag& flag);
void LaunchAwait(const Queue& queue, const Flag& flag);

}  // namespace thermocline::cuda
