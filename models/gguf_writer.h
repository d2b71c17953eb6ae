// The header of a GGUF file made from another one: the same metadata and tensors, stored as other types.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "models/gguf.h"

namespace thermocline {

// Bytes of a tensor of this shape as `type`, whose block divides ne[0].
uint64_t TensorBytes(const Tensor& tensor, DType type);

// Where tensor data goes in the new file.
struct GgufLayout {
  std::vector<uint8_t> header;    // everything in front of the tensor data, padded to the alignment
  std::vector<uint64_t> offsets;  // by tensor of the source, absolute
  uint64_t file_bytes;            // tensor data ends here
};

// types[i]: of source.tensors()[i]. `numbers`: u32 values that replace those of the source, or are added. All other
// metadata is copied byte by byte; the data keeps the source's alignment.
GgufLayout LayOutGguf(const GgufFile& source, std::span<const DType> types,
                      std::span<const std::pair<std::string_view, uint32_t>> numbers);

}  // namespace thermocline
