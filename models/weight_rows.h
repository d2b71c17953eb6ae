// Rows of a weight as its model has them, whatever the file does: in the model's order of neurons, and of another type.
#pragma once

#include <cstdint>
#include <vector>

#include "models/model.h"

namespace thermocline {

// The rows of a matrix as they stand in a file.
struct FileRows {
  const uint8_t* data;
  int64_t row_bytes;
};
inline int64_t FileRowBytes(DType type, int64_t k) { return k / Info(type).block * Info(type).block_bytes; }

// Rows [row, row + n_rows) of the weight, and of them the model's columns [column, column + n_columns), as `type`:
// where they stand in the file, or in `scratch`. Columns are counted from the tensor's first one on, rows from the
// weight's; n_columns is a multiple of the type's block, and where the type is the weight's, `column` is, too.
FileRows RowsAs(DType type, const Weight& weight, int64_t row, int64_t n_rows, int64_t column, int64_t n_columns,
                std::vector<uint8_t>& scratch);

// A vector's numbers (n).
std::vector<float> VectorOf(const Weight& weight);

}  // namespace thermocline
