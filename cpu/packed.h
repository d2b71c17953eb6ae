// Weights as the kernels read them, repacked from the file into the panels of models/packed_format.h.
#pragma once

#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "models/packed_format.h"
#include "models/weight_rows.h"

namespace thermocline {

// Panels [begin, end) of a matrix (n, k), or the rows of a float type, one behind the other from `out` on.
void PackPanelRun(DType type, const FileRows& rows, int64_t n, int64_t k, int64_t begin, int64_t end, Isa isa,
                  uint8_t* out);

// A packed or float matrix. Float types stand row-major, rows stride_bytes apart (a multiple of 64).
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // In memory of its own. Throws Error when there is not enough.
  PackedMatrix(DType source, int64_t n, int64_t k);
  // In BytesFor(...) bytes of somebody else's memory, 64-byte aligned, that must outlive it.
  PackedMatrix(DType source, int64_t n, int64_t k, uint8_t* memory);

  // Packs panels [begin, end) from their rows; panels may be packed by several threads at once. Every instruction set
  // writes the same bytes.
  void PackPanels(const FileRows& rows, int64_t begin, int64_t end, Isa isa) {
    PackPanelRun(type_, rows, n_ - begin * kPanelRows, k_, 0, end - begin, isa,
                 data_ + begin * (format_ ? panel_bytes() : kPanelRows * stride_bytes_));
  }
  // All of them from the rows of a file, one behind the other.
  void PackPanels(const uint8_t* source, int64_t begin, int64_t end, Isa isa = Isa::kScalar) {
    PackPanels({source + begin * kPanelRows * FileRowBytes(type_, k_), FileRowBytes(type_, k_)}, begin, end, isa);
  }
  // Row n as floats, exactly the values of the file.
  void DequantizeRow(int64_t n, float* out) const;

  const PackedFormat* format() const { return format_; }  // nullptr: float
  DType type() const { return type_; }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t n_panels() const { return (n_ + kPanelRows - 1) / kPanelRows; }
  int64_t n_blocks() const { return (k_ + format_->block_k() - 1) / format_->block_k(); }
  int64_t panel_bytes() const { return n_blocks() * format_->block_bytes(); }
  int64_t stride_bytes() const { return stride_bytes_; }
  int64_t bytes() const { return bytes_; }
  const uint8_t* panel(int64_t i) const { return data_ + i * panel_bytes(); }
  const uint8_t* row(int64_t i) const { return data_ + i * stride_bytes_; }  // float types

  static int64_t BytesFor(DType source, int64_t n, int64_t k) { return PackedBytes(source, n, k); }

 private:
  PackedMatrix(DType source, int64_t n, int64_t k, Buffer own);

  const PackedFormat* format_ = nullptr;
  DType type_ = DType::kF32;
  int64_t n_ = 0, k_ = 0, stride_bytes_ = 0, bytes_ = 0;
  uint8_t* data_ = nullptr;
  Buffer own_;
};

}  // namespace thermocline
