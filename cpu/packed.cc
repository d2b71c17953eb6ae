#include "cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "cpu/pack.h"
#include "models/check.h"

namespace thermocline {

PackFn PackFnFor(Isa isa, DType source) {
  switch (isa) {
    case Isa::kScalar: return nullptr;
    case Isa::kAvx2:
    case Isa::kAvxVnni: return PackFnAvx2(source);
    case Isa::kAvx512:
    case Isa::kAmx: return PackFnAvx512(source);
  }
  CHECK(!"an Isa outside the enumeration");
  return nullptr;
}

PackedMatrix::PackedMatrix(DType source, int64_t n, int64_t k)
    : PackedMatrix(source, n, k, Buffer(BytesFor(source, n, k), "the weights")) {}

PackedMatrix::PackedMatrix(DType source, int64_t n, int64_t k, Buffer own) : PackedMatrix(source, n, k, own.data()) {
  own_ = std::move(own);
}

PackedMatrix::PackedMatrix(DType source, int64_t n, int64_t k, uint8_t* memory)
    : format_(FindPackedFormat(source)), type_(source), n_(n), k_(k), bytes_(BytesFor(source, n, k)), data_(memory) {
  CHECK(k % Info(source).block == 0 && reinterpret_cast<uintptr_t>(memory) % 64 == 0);
  if (!format_) stride_bytes_ = PackedStride(source, k);
}

void PackPanel(Isa isa, const PackedFormat& format, const uint8_t* source, int64_t row_bytes, int n_rows, int64_t k,
               uint8_t* panel) {
  const DTypeInfo& info = Info(format.source);
  const PackFn pack = n_rows == kPanelRows ? PackFnFor(isa, format.source) : nullptr;
  const int64_t n_blocks = (k + format.block_k() - 1) / format.block_k(), whole = pack ? k / format.block_k() : 0;
  if (whole > 0) pack({source, row_bytes, whole, panel});
  if (whole < n_blocks)
    PackPanelReference(format, source + whole * format.block_k() / info.block * info.block_bytes, row_bytes, n_rows,
                       k - whole * format.block_k(), panel + whole * format.block_bytes());
}

void PackPanelRun(DType type, const FileRows& rows, int64_t n, int64_t k, int64_t begin, int64_t end, Isa isa,
                  uint8_t* out) {
  const PackedFormat* format = FindPackedFormat(type);
  for (int64_t p = begin; p < end; ++p) {
    const uint8_t* from = rows.data + p * kPanelRows * rows.row_bytes;
    const int n_rows = static_cast<int>(std::min<int64_t>(kPanelRows, n - p * kPanelRows));
    if (format) {
      PackPanel(isa, *format, from, rows.row_bytes, n_rows, k, out);
      out += PackedBytes(type, kPanelRows, k);
      continue;
    }
    for (int i = 0; i < n_rows; ++i, out += PackedStride(type, k))
      std::memcpy(out, from + i * rows.row_bytes, FileRowBytes(type, k));
  }
}

void PackedMatrix::DequantizeRow(int64_t n, float* out) const {
  CHECK(n >= 0 && n < n_);
  if (!format_) {
    Dequantize(type_, row(n), k_, out);
    return;
  }
  const int r = static_cast<int>(n % kPanelRows);
  const uint8_t* block = panel(n / kPanelRows);
  for (int64_t k0 = 0; k0 < k_; k0 += format_->block_k(), block += format_->block_bytes())
    for (int g = 0; g < format_->block_k() / format_->group && k0 + g * format_->group < k_; ++g) {
      const PackedGroup w = ReadGroup(*format_, block, r, g);
      for (int j = 0; j < format_->group; ++j)
        out[k0 + g * format_->group + j] =
            format_->has_min ? w.scale * w.code[j] + w.min : w.scale * (w.code[j] - format_->zero_point);
    }
}

}  // namespace thermocline
