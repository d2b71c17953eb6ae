#include "models/gguf_writer.h"

#include <algorithm>
#include <cstring>

#include "models/check.h"
#include "models/checked.h"

namespace thermocline {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint32_t kTypeU32 = 4;  // ggml docs/gguf.md, gguf_metadata_value_type

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

void PutNumber(std::vector<uint8_t>& bytes, std::string_view key, uint32_t value) {
  PutString(bytes, key);
  Put(bytes, kTypeU32);
  Put(bytes, value);
}

uint64_t AlignUp(uint64_t offset, uint64_t alignment) {
  const auto aligned = CheckedAlignUp(offset, alignment);
  CHECK(aligned.has_value());  // no larger than the file that was read, which is far from 2^64
  return *aligned;
}

}  // namespace

uint64_t TensorBytes(const Tensor& tensor, DType type) {
  const DTypeInfo& info = Info(type);
  CHECK(tensor.ne[0] % info.block == 0);
  const auto blocks = tensor.ne[0] / info.block * tensor.ne[1] * tensor.ne[2] * tensor.ne[3];
  return static_cast<uint64_t>(blocks) * static_cast<uint64_t>(info.block_bytes);
}

GgufLayout LayOutGguf(const GgufFile& source, std::span<const DType> types,
                      std::span<const std::pair<std::string_view, uint32_t>> numbers) {
  CHECK(types.size() == source.tensors().size());
  GgufLayout layout;
  std::vector<uint8_t>& out = layout.header;
  const auto is_new = [&](const auto& number) { return source.Find(number.first) == nullptr; };
  const auto n_new = static_cast<uint64_t>(std::count_if(numbers.begin(), numbers.end(), is_new));
  out.insert(out.end(), {'G', 'G', 'U', 'F'});
  Put(out, kVersion);
  Put<uint64_t>(out, types.size());
  Put<uint64_t>(out, source.metadata().size() + n_new);
  for (size_t i = 0; i < source.metadata().size(); ++i) {
    const auto replaced = std::find_if(numbers.begin(), numbers.end(),
                                       [&](const auto& number) { return number.first == source.metadata()[i].first; });
    if (replaced != numbers.end()) {
      PutNumber(out, replaced->first, replaced->second);
      continue;
    }
    const auto raw = source.RawMetadata(i);
    out.insert(out.end(), raw.begin(), raw.end());
  }
  for (const auto& number : numbers) {
    if (is_new(number)) PutNumber(out, number.first, number.second);
  }
  uint64_t offset = 0;
  for (size_t i = 0; i < types.size(); ++i) {
    const Tensor& tensor = source.tensors()[i];
    uint32_t n_dims = 4;
    while (n_dims > 1 && tensor.ne[n_dims - 1] == 1) --n_dims;
    PutString(out, tensor.name);
    Put(out, n_dims);
    for (uint32_t d = 0; d < n_dims; ++d) Put(out, static_cast<uint64_t>(tensor.ne[d]));
    Put(out, static_cast<uint32_t>(types[i]));
    Put(out, offset);
    layout.offsets.push_back(offset);
    offset = AlignUp(offset + TensorBytes(tensor, types[i]), source.alignment());
  }
  out.resize(AlignUp(out.size(), source.alignment()));
  for (uint64_t& at : layout.offsets) at += out.size();
  layout.file_bytes = out.size() + offset;
  return layout;
}

}  // namespace thermocline
