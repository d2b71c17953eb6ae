#include "runtime/stream_rows.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdint>

namespace thermocline {
namespace {

// More than kernels of few rows take.
constexpr int kLeast = 16, kMost = 1 << 20;

}  // namespace

int RowsToStream(int n_rows, double with_cpu, double streamed, double streamed_twice) {
  const double per_row = std::max(0.0, streamed_twice - streamed) / n_rows;
  const double on_the_way = std::max(0.0, streamed - per_row * n_rows);
  const double gained = with_cpu / n_rows - per_row;  // by a row
  if (gained * kMost <= on_the_way) return INT_MAX;
  return std::max(kLeast, static_cast<int>(std::bit_ceil(static_cast<uint32_t>(std::ceil(on_the_way / gained)))));
}

}  // namespace thermocline
