// How a lane of a warp reads one unit, 16 rows x 64 k, of each weight type; and how panels become units.
//
// Lane 4r + i has rows r and r + 8, called row 0 and 1 below. "w(c, row, i)" is the word that line i of chunk c of the
// panel has for that row: of 4-bit types quads i and i + 4.
//
//   Q4_0   unit [lane: w(0,0,i) w(0,1,i) w(1,0,i) w(1,1,i)], less 8 in two's complement, then [r: F16 scales of (0,0)
//          (0,1) (1,0) (1,1)]
//   Q4_1   the same, but codes as they are, and [r: 4 scales, then 4 mins]
//   Q8_0   unit [chunk][lane: quad i of row 0, of row 1, quad i + 4 of row 0, of row 1], signed; scales as Q4_0
//   Q4_K   block [unit: codes as Q4_1][unit: [r: u8 scales of (0,0) (0,1) (1,0) (1,1), 4 u8 mins]]
//          [r: F16 d of row 0, of row 1, dmin of row 0, of row 1]
//   Q5_0, Q5_1, Q5_K   as Q4_0, Q4_1, Q4_K, but behind the codes of each unit are [lane: bit 4c + 2row + half of its
//          bytes: bit 4 of chunk c, row, quad i or (half 1) i + 4]; of Q5_0 less 16 in two's complement
//   Q6_K   less 32 in two's complement: block [unit: lower 4 bits as Q4_1, then [lane: of chunks 0 and 1 a word of bits
//          4 and 5: bits 0-1 of its bytes are of row 0, quad i; 2-3: row 0, quad i + 4; 4-7: row 1]]
//          [unit: [r: s8 scales of halves 0..3 of the 64 k of row 0, then of row 1]][r: F16 d of row 0, of row 1]
//          [32 bytes unused]
#pragma once

#include "gpu/cuda/tile_k.cuh"
#include "gpu/cuda/tile_simple.cuh"

namespace thermocline::cuda {

// f(Tile<type>{}) for a type that has one.
template <typename F>
void WithTile(DType type, const F& f) {
  switch (type) {
    case DType::kQ4_0: f(Tile<DType::kQ4_0>{}); break;
    case DType::kQ4_1: f(Tile<DType::kQ4_1>{}); break;
    case DType::kQ8_0: f(Tile<DType::kQ8_0>{}); break;
    case DType::kQ5_0: f(Tile<DType::kQ5_0>{}); break;
    case DType::kQ5_1: f(Tile<DType::kQ5_1>{}); break;
    case DType::kQ5_K: f(Tile<DType::kQ5_K>{}); break;
    case DType::kQ4_K: f(Tile<DType::kQ4_K>{}); break;
    case DType::kQ6_K: f(Tile<DType::kQ6_K>{}); break;
    default: break;
  }
}

}  // namespace thermocline::cuda
