// Where kernels are launched, and how the errors of the CUDA runtime become ours.
#pragma once

struct CUstream_st;

namespace thermocline::cuda {

struct Queue {
  CUstream_st* stream = nullptr;
  int n_sm = 1;                 // multiprocessors of the device
  int shared_bytes = 48 << 10;  // that a block may have
  bool overlaps = false;        // kernels may begin before their predecessor has ended: from sm_90 on
};
// Of the current device. Throws Error when it cannot be asked.
Queue MakeQueue(CUstream_st* stream);

// `code`: a cudaError_t. Throw Error with CUDA's words unless it is cudaSuccess.
void CheckCuda(int code, const char* what);
inline void CheckLaunch(int code) { CheckCuda(code, "a kernel could not be launched"); }

}  // namespace thermocline::cuda
