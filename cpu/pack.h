// Packing: the rows of a file become panels (models/packed_format.h). ref/pack.cc is the specification; the wide
// packers write the same bytes.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/packed.h"

namespace thermocline {

// One panel, all of it: `n_rows` rows of K weights, row_bytes apart; panel rows past them and k past K get zeros.
void PackPanelReference(const PackedFormat& format, const uint8_t* source, int64_t row_bytes, int n_rows, int64_t k,
                        uint8_t* panel);

// The same with the vectors of `isa`, where it has them.
void PackPanel(Isa isa, const PackedFormat& format, const uint8_t* source, int64_t row_bytes, int n_rows, int64_t k,
               uint8_t* panel);

struct PackArgs {
  const uint8_t* source;  // 16 rows, row_bytes apart
  int64_t row_bytes;
  int64_t n_blocks;  // packed blocks whose k are all in the file
  uint8_t* out;      // 64-byte aligned
};
using PackFn = void (*)(const PackArgs&);

// nullptr: that instruction set has none. To be called only where it runs.
PackFn PackFnAvx2(DType source);
PackFn PackFnAvx512(DType source);
PackFn PackFnFor(Isa isa, DType source);

}  // namespace thermocline
