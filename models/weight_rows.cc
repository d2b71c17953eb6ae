#include "models/weight_rows.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "models/check.h"
#include "models/quantize.h"

namespace thermocline {
namespace {

const uint8_t* FileRow(const Weight& weight, int64_t row) {
  row += weight.first_row;
  return weight.tensor->data + (weight.rows ? (*weight.rows)[row] : row) * weight.row_bytes();
}

// Blocks of the file's row, those of the order's columns one behind the other.
void CopyBlocks(const Weight& weight, const uint8_t* row, int64_t column, int64_t n_columns, uint8_t* out) {
  const auto [block, block_bytes] = std::pair(Info(weight.tensor->type).block, Info(weight.tensor->type).block_bytes);
  if (!weight.columns) {
    std::memcpy(out, row + column / block * block_bytes, FileRowBytes(weight.tensor->type, n_columns));
    return;
  }
  for (int64_t k = 0; k < n_columns; k += block, out += block_bytes)
    std::memcpy(out, row + (*weight.columns)[column + k] / block * block_bytes, block_bytes);
}

// Turns parts of a weight's rows into floats.
class RowReader {
 public:
  RowReader(const Weight& weight, int64_t column, int64_t n_columns)
      : weight_(weight), column_(column), n_columns_(n_columns), block_(Info(weight.tensor->type).block) {
    // In another order columns come from anywhere in the row.
    first_ = weight.columns ? 0 : column / block_ * block_;
    const int64_t end = weight.columns ? weight.tensor->ne[0] : column + n_columns;
    file_.resize(static_cast<size_t>((end - first_ + block_ - 1) / block_ * block_));
    if (weight.columns) ordered_.resize(static_cast<size_t>(n_columns));
  }

  const float* Read(const uint8_t* row) {
    Dequantize(weight_.tensor->type, row + FileRowBytes(weight_.tensor->type, first_), std::ssize(file_), file_.data());
    if (!weight_.columns) return file_.data() + column_ - first_;
    for (int64_t k = 0; k < n_columns_; ++k) ordered_[k] = file_[(*weight_.columns)[column_ + k]];
    return ordered_.data();
  }

 private:
  const Weight& weight_;
  const int64_t column_, n_columns_, block_;
  int64_t first_;
  std::vector<float> file_, ordered_;
};

// The same of a transposed tensor: floats (n_rows, n_columns). Each of its rows holds one column.
std::vector<float> ReadTransposed(const Weight& weight, int64_t row, int64_t n_rows, int64_t column,
                                  int64_t n_columns) {
  constexpr int64_t kTogether = 16;  // columns, so that their numbers of a row are written side by side
  const DTypeInfo& info = Info(weight.tensor->type);
  row += weight.first_row;
  const int64_t first = row / info.block * info.block;
  const int64_t width = (row + n_rows - first + info.block - 1) / info.block * info.block;
  std::vector<float> floats(static_cast<size_t>(n_rows * n_columns)), strips(static_cast<size_t>(kTogether * width));
  for (int64_t begin = 0; begin < n_columns; begin += kTogether) {
    const int64_t n = std::min(kTogether, n_columns - begin);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t at = column + begin + i;
      Dequantize(weight.tensor->type,
                 weight.tensor->data + (weight.columns ? (*weight.columns)[at] : at) * weight.row_bytes() +
                     FileRowBytes(weight.tensor->type, first),
                 width, strips.data() + i * width);
    }
    for (int64_t r = 0; r < n_rows; ++r)
      for (int64_t i = 0; i < n; ++i) floats[r * n_columns + begin + i] = strips[i * width + row - first + r];
  }
  return floats;
}

}  // namespace

FileRows RowsAs(DType type, const Weight& weight, int64_t row, int64_t n_rows, int64_t column, int64_t n_columns,
                std::vector<uint8_t>& scratch) {
  const int64_t row_bytes = FileRowBytes(type, n_columns);
  if (weight.transposed) {
    const std::vector<float> floats = ReadTransposed(weight, row, n_rows, column, n_columns);
    scratch.resize(static_cast<size_t>(n_rows * row_bytes));
    for (int64_t i = 0; i < n_rows; ++i)
      Quantize(type, floats.data() + i * n_columns, nullptr, n_columns, scratch.data() + i * row_bytes);
    return {scratch.data(), row_bytes};
  }
  const DType source = weight.tensor->type;
  const bool whole_blocks = !weight.columns || weight.columns->unit() % Info(source).block == 0;
  const bool as_they_are = type == source && whole_blocks;
  CHECK(!as_they_are || column % Info(source).block == 0);
  if (as_they_are && !weight.rows && !weight.columns)
    return {FileRow(weight, row) + FileRowBytes(source, column), weight.row_bytes()};
  scratch.resize(static_cast<size_t>(n_rows * row_bytes));
  RowReader reader(weight, column, n_columns);
  for (int64_t i = 0; i < n_rows; ++i) {
    uint8_t* out = scratch.data() + i * row_bytes;
    if (as_they_are)
      CopyBlocks(weight, FileRow(weight, row + i), column, n_columns, out);
    else
      Quantize(type, reader.Read(FileRow(weight, row + i)), nullptr, n_columns, out);
  }
  return {scratch.data(), row_bytes};
}

std::vector<float> VectorOf(const Weight& weight) {
  std::vector<float> floats(static_cast<size_t>(weight.n));
  for (int64_t i = 0; i < weight.n; ++i) Dequantize(weight.tensor->type, FileRow(weight, i), 1, &floats[i]);
  return floats;
}

}  // namespace thermocline
