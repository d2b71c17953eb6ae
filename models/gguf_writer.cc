#include "models/gguf_writer.h"

#include <algorithm>
#include <cstring>

#include "models/check.h"
#include "models/checked.h"

namespace thermocline {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint32_t kTypeU32 = 4, kTypeF32 = 6, kTypeString = 8;  // ggml docs/gguf.md, gguf_metadata_value_type

template <typename T>
void Put(std::vector<uint8_t>& bytes, T value) {
  const size_t at = bytes.size();
  bytes.resize(at + sizeof value);
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

void PutString(std::vector<uint8_t>& bytes, std::string_view text) {
  Put<uint64_t>(bytes, text.size());
  bytes.insert(bytes.end(), text.begin(), text.end());
}

uint64_t AlignUp(uint64_t offset, uint64_t alignment) {
  const auto aligned = CheckedAlignUp(offset, alignment);
  CHECK(aligned.has_value());  // no larger than the file that was read, which is far from 2^64
  return *aligned;
}

uint64_t TensorBytes(DType type, std::span<const int64_t> ne) {
  const DTypeInfo& info = Info(type);
  CHECK(ne[0] % info.block == 0);
  uint64_t bytes = static_cast<uint64_t>(ne[0] / info.block) * static_cast<uint64_t>(info.block_bytes);
  for (const int64_t extent : ne.subspan(1)) bytes *= static_cast<uint64_t>(extent);
  return bytes;
}

}  // namespace

void GgufHeader::AddText(std::string_view key, std::string_view value) {
  PutString(metadata_, key);
  Put(metadata_, kTypeString);
  PutString(metadata_, value);
  ++n_metadata_;
}

void GgufHeader::AddU32(std::string_view key, uint32_t value) {
  PutString(metadata_, key);
  Put(metadata_, kTypeU32);
  Put(metadata_, value);
  ++n_metadata_;
}

void GgufHeader::AddF32(std::string_view key, float value) {
  PutString(metadata_, key);
  Put(metadata_, kTypeF32);
  Put(metadata_, value);
  ++n_metadata_;
}

void GgufHeader::AddRaw(std::span<const uint8_t> pair) {
  metadata_.insert(metadata_.end(), pair.begin(), pair.end());
  ++n_metadata_;
}

void GgufHeader::AddTensor(std::string_view name, DType type, std::span<const int64_t> ne) {
  tensors_.push_back({std::string(name), type, {ne.begin(), ne.end()}});
}

GgufLayout GgufHeader::LayOut(uint64_t alignment) const {
  GgufLayout layout;
  std::vector<uint8_t>& out = layout.header;
  out.insert(out.end(), {'G', 'G', 'U', 'F'});
  Put(out, kVersion);
  Put<uint64_t>(out, tensors_.size());
  Put(out, n_metadata_);
  out.insert(out.end(), metadata_.begin(), metadata_.end());
  uint64_t offset = 0;
  for (const TensorInfo& tensor : tensors_) {
    PutString(out, tensor.name);
    Put(out, static_cast<uint32_t>(tensor.ne.size()));
    for (const int64_t extent : tensor.ne) Put(out, static_cast<uint64_t>(extent));
    Put(out, static_cast<uint32_t>(tensor.type));
    Put(out, offset);
    layout.offsets.push_back(offset);
    offset = AlignUp(offset + TensorBytes(tensor.type, tensor.ne), alignment);
  }
  out.resize(AlignUp(out.size(), alignment));
  for (uint64_t& at : layout.offsets) at += out.size();
  layout.file_bytes = out.size() + offset;
  return layout;
}

uint64_t TensorBytes(const Tensor& tensor, DType type) { return TensorBytes(type, tensor.ne); }

GgufLayout LayOutGguf(const GgufFile& source, std::span<const DType> types,
                      std::span<const std::pair<std::string_view, uint32_t>> numbers) {
  CHECK(types.size() == source.tensors().size());
  GgufHeader header;
  for (size_t i = 0; i < source.metadata().size(); ++i) {
    const auto replaced = std::find_if(numbers.begin(), numbers.end(),
                                       [&](const auto& number) { return number.first == source.metadata()[i].first; });
    if (replaced != numbers.end())
      header.AddU32(replaced->first, replaced->second);
    else
      header.AddRaw(source.RawMetadata(i));
  }
  for (const auto& [key, value] : numbers) {
    if (source.Find(key) == nullptr) header.AddU32(key, value);
  }
  for (size_t i = 0; i < types.size(); ++i) {
    const Tensor& tensor = source.tensors()[i];
    size_t n_dims = 4;
    while (n_dims > 1 && tensor.ne[n_dims - 1] == 1) --n_dims;
    header.AddTensor(tensor.name, types[i], std::span(tensor.ne).first(n_dims));
  }
  return header.LayOut(source.alignment());
}

}  // namespace thermocline
