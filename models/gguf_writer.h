// The headers of GGUF files: new ones, and ones made from another file's.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/gguf.h"

namespace thermocline {

// Bytes of a tensor of this shape as `type`, whose block divides ne[0].
uint64_t TensorBytes(const Tensor& tensor, DType type);

// A header, and where the tensor data behind it goes.
struct GgufLayout {
  std::vector<uint8_t> header;    // everything in front of the tensor data, padded to the alignment
  std::vector<uint64_t> offsets;  // by tensor, absolute
  uint64_t file_bytes;            // tensor data ends here
};

// The header of a new file: metadata and tensors in the order in which they are added, each key and name once.
class GgufHeader {
 public:
  void AddText(std::string_view key, std::string_view value);
  void AddU32(std::string_view key, uint32_t value);
  void AddF32(std::string_view key, float value);
  void AddRaw(std::span<const uint8_t> pair);  // as GgufFile::RawMetadata has it
  // ne: 1 to 4 dimensions, the contiguous one, which the type's block divides, first.
  void AddTensor(std::string_view name, DType type, std::span<const int64_t> ne);
  // offsets: by tensor, in order.
  GgufLayout LayOut(uint64_t alignment) const;

 private:
  struct TensorInfo {
    std::string name;
    DType type;
    std::vector<int64_t> ne;
  };
  std::vector<uint8_t> metadata_;
  uint64_t n_metadata_ = 0;
  std::vector<TensorInfo> tensors_;
};

// types[i]: of source.tensors()[i]. `numbers`: u32 values that replace those of the source, or are added. All other
// metadata is copied byte by byte; the data keeps the source's alignment.
GgufLayout LayOutGguf(const GgufFile& source, std::span<const DType> types,
                      std::span<const std::pair<std::string_view, uint32_t>> numbers);

}  // namespace thermocline
