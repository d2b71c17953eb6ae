// The ops between matrix products. cuda/ref/vector_ops.cc has the specification of each, in double, host to host.
//
// Every function enqueues one kernel. Rows are floats, `stride` from row to row.
#pragma once

#include <cstdint>

#include "gpu/cuda/layout.h"
#include "gpu/cuda/queue.h"
#include "models/model.h"

namespace thermocline::cuda {

struct Rows {
  float* data = nullptr;
  int64_t stride = 0;
};
struct ConstRows {
  const float* data = nullptr;
  int64_t stride = 0;
  ConstRows() = default;
  ConstRows(const float* data, int64_t stride) : data(data), stride(stride) {}
  ConstRows(const Rows& rows) : data(rows.data), stride(rows.stride) {}  // NOLINT: as float* becomes const float*
};

// Where activations go besides, or none: (rows) in the form of gpu/cuda/layout.h.
using Quantized = uint8_t*;

// out (+)= norm(x[gather[row]]) * weight + bias: an RMS norm, or with a bias a layer norm. Accumulating, `quantized`
// is of the sum. gather: null where row `row` is meant. out may be x, unless
// gathering or accumulating.
struct NormArgs {
  ConstRows x;
  const int32_t* gather = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0;
  int n = 0;
  bool accumulate = false;
  Rows out;
  Quantized quantized = nullptr;
};
void LaunchNorm(const Queue& queue, const NormArgs& args, int n_rows);

// RMS norm of each of a row's heads, in place.
void LaunchHeadNorm(const Queue& queue, Rows x, const float* weight, float eps, int n_heads, int head_dim, int n_rows);

// out[row, 2i], out[row, 2i + 1] = cos, sin of position[row] * frequency[i], i in [0, n_pairs).
void LaunchRopeTable(const Queue& queue, const int32_t* position, const double* frequency, int n_pairs, Rows out,
                     int n_rows);
// Rotates the first n_dims of each head in place; table as LaunchRopeTable leaves it.
void LaunchRope(const Queue& queue, Rows x, ConstRows table, RopeKind kind, int n_dims, int n_heads, int head_dim,
                int n_rows);

// out = act(gate) * up, or act(gate) where up.data is null; out may be gate.
void LaunchAct(const Queue& queue, ConstRows gate, ConstRows up, Activation activation, int n, Rows out,
               Quantized quantized, int n_rows);
void LaunchAdd(const Queue& queue, ConstRows x, int n, Rows out, int n_rows);  // out += x
// counts[i] += the rows with prompt[row] = 0 and |act(gate[row, i])| not <= *level.
void LaunchCountFirings(const Queue& queue, ConstRows gate, Activation activation, int n, const float* level,
                        const uint8_t* prompt, uint32_t* counts, int n_rows);

// Which groups have a lo plane: in rows with rows[row] != 0 those whose squared scale is more than `factor` times the
// row's mean; in others all.
struct LargeGroups {
  float factor;
  const uint8_t* rows;  // null: all groups of all rows
  float* limits;        // scratch, one for each row
};
// x[row, i] for i in [lead, n) to activations of k columns; the others are zero.
void LaunchQuantize(const Queue& queue, ConstRows x, int n, int64_t k, const LargeGroups& large, Quantized out,
                    int n_rows, int lead = 0);

// The specification.
void NormReference(const float* x, const float* weight, const float* bias, float eps, int n, bool accumulate,
                   float* out);
void RopeReference(float* head, const float* cos_sin, int n_dims, RopeKind kind);
float ActReference(float gate, Activation activation);
// One row, tiles and all: bytes of row n of a tile that begins at `tile`.
// large_group: LargeGroups::factor, or negative for all groups.
void QuantizeReference(const float* x, int n, int64_t k, float large_group, int tile_row, uint8_t* tile);
// The value that activation k of a row of a tile stands for.
float ReadActivation(const uint8_t* tile, int tile_row, int64_t k);

}  // namespace thermocline::cuda
