// Around calls of oneDNN, in builds that have it: the calling thread starts no OpenMP threads, as the team is what
// shares work out.
#pragma once

#include <omp.h>

namespace thermocline {

class OneOpenMpThread {
 public:
  OneOpenMpThread() { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;

 private:
  const int before_ = omp_get_max_threads();
};

}  // namespace thermocline
