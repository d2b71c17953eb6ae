// The best product of low rank in place of a matrix, for what the matrix is multiplied by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace thermocline {

// out^T (in x) for W x.
struct LowRank {
  std::vector<float> in;   // (rank, k): its outputs are uncorrelated over the inputs, with a mean square of 1
  std::vector<float> out;  // (rank, n)
};

// Of w (n, k) for inputs like x (n_inputs, k): near the least mean square of W x - out^T (in x) over them, by subspace
// iteration (arXiv:0909.4061 sec. 4.5). rank at most k. The same arguments give the same bits.
LowRank ApproximateLowRank(std::span<const float> w, std::span<const float> x, int64_t k, int64_t rank);

}  // namespace thermocline
