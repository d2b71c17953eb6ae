// Weights and activations as the CUDA kernels read them.
//
// Weights come as models/packed_format.h has them, panels of 16 rows,
// and are interleaved once, on the device, block by block and in place. A unit of 16 rows x 64 k is then what one warp
// loads at once, and what a lane loads is its fragment of mma.m16n8k32 (PTX ISA, "Matrix fragments"): lane 4r + i has
// rows r and r + 8, quads i and i + 4 of both chunks. No shuffle and no shared memory is needed, as in QUICK
// (arXiv:2402.10076). gpu/cuda/tile.cuh draws the units.
//
// Activations: 16 bits per value and one scale per group of 32, in two s8 planes:
//
//   q[k] = round(x[k] / scale), |q| <= 127 * 256;  q = 256 * hi + lo,  hi in [-127, 127], lo in [-128, 127]
//
// Rows stand in tiles of 8. Of every tile and group of 32 k there are 640 bytes:
//
//   32 lanes x 16 bytes: lane 4n + i has row n, quads i and i + 4 of hi, then of lo
//   for plane hi, lo and pairs of rows j in 0..3: {256 scale (of lo: scale) of rows 2j, 2j + 1, sum of the plane over
//     the group of rows 2j, 2j + 1}
#pragma once

#include <cstdint>
#include <string>

#include "models/dtype.h"
#include "models/packed_format.h"

namespace thermocline::cuda {

inline constexpr int kGroup = 32;    // activations that share a scale
inline constexpr int kUnitK = 64;    // k per unit
inline constexpr int kTileRows = 8;  // rows of activations per tile
inline constexpr int kActivationMax = 127 * 256;
inline constexpr int kGroupBytes = 640;  // of a tile and group of activations
inline constexpr int kMetaOffset = 512, kPlaneMeta = 64;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether a kernel multiplies by that type; all that do, comma-separated.
bool HasKernel(DType type);
std::string TypesWithKernel();

// Groups of a row of k activations: as many as the widest block covers; those past k are zero.
constexpr int64_t ActivationGroups(int64_t k) { return CeilDiv(k, 256) * 8; }
constexpr int64_t ActivationTileBytes(int64_t k) { return ActivationGroups(k) * kGroupBytes; }
constexpr int64_t ActivationBytes(int64_t m, int64_t k) { return CeilDiv(m, kTileRows) * ActivationTileBytes(k); }
// Within the tile and group: byte of plane 0 (hi) or 1 (lo) of value k of row n.
constexpr int ActivationByte(int n, int k, int plane) {
  return 16 * (4 * n + k / 4 % 4) + 8 * plane + 4 * (k / 16) + k % 4;
}

}  // namespace thermocline::cuda
