// Makes GGUF files for tests, in memory: whole ones, and ones that lie about themselves.
//
//   GgufWriter writer;
//   writer.U32("llama.block_count", 1).Strings("tokenizer.ggml.tokens", {"a", "b"});
//   writer.Tensor("output_norm.weight", DType::kF32, {4}, Bytes(std::vector<float>{1, 2, 3, 4}));
//   const GgufFile file = writer.Open();
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/dtype.h"
#include "models/gguf.h"

namespace thermocline {

using ByteVector = std::vector<uint8_t>;

// The bytes of numbers, as they stand in memory and in a file.
template <typename T>
ByteVector Bytes(const std::vector<T>& values) {
  ByteVector bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

class GgufWriter {
 public:
  // ggml docs/gguf.md, gguf_metadata_value_type.
  enum Type : uint32_t {
    kU8,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64,
  };

  // What the header claims; tests overwrite it to lie.
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;             // of the layout; set general.alignment as well to say so in the file
  std::optional<uint64_t> n_metadata;  // instead of the true counts
  std::optional<uint64_t> n_tensors;

  struct TensorEntry {
    std::string name;
    uint32_t type;
    std::vector<uint64_t> ne;
    ByteVector data;
    std::optional<uint64_t> offset;  // instead of the true one
    std::optional<uint32_t> n_dims;
  };
  std::vector<TensorEntry> tensors;

  GgufWriter& U8(std::string key, uint8_t v) { return Scalar(std::move(key), kU8, v); }
  GgufWriter& I8(std::string key, int8_t v) { return Scalar(std::move(key), kI8, v); }
  GgufWriter& U16(std::string key, uint16_t v) { return Scalar(std::move(key), kU16, v); }
  GgufWriter& I16(std::string key, int16_t v) { return Scalar(std::move(key), kI16, v); }
  GgufWriter& U32(std::string key, uint32_t v) { return Scalar(std::move(key), kU32, v); }
  GgufWriter& I32(std::string key, int32_t v) { return Scalar(std::move(key), kI32, v); }
  GgufWriter& U64(std::string key, uint64_t v) { return Scalar(std::move(key), kU64, v); }
  GgufWriter& I64(std::string key, int64_t v) { return Scalar(std::move(key), kI64, v); }
  GgufWriter& F32(std::string key, float v) { return Scalar(std::move(key), kF32, v); }
  GgufWriter& F64(std::string key, double v) { return Scalar(std::move(key), kF64, v); }
  GgufWriter& Bool(std::string key, bool v) { return Scalar(std::move(key), kBool, static_cast<uint8_t>(v)); }
  GgufWriter& String(std::string key, std::string_view v) {
    ByteVector bytes;
    PutString(bytes, v);
    return Raw(std::move(key), kString, std::move(bytes));
  }
  GgufWriter& Strings(std::string key, const std::vector<std::string>& values) {
    ByteVector bytes;
    for (const std::string& value : values) PutString(bytes, value);
    return Array(std::move(key), kString, values.size(), bytes);
  }
  template <typename T>
  GgufWriter& Numbers(std::string key, Type element_type, const std::vector<T>& values) {
    return Array(std::move(key), element_type, values.size(), Bytes(values));
  }
  GgufWriter& Floats(std::string key, const std::vector<float>& v) { return Numbers(std::move(key), kF32, v); }
  GgufWriter& Ints(std::string key, const std::vector<int32_t>& v) { return Numbers(std::move(key), kI32, v); }
  // `count` is what the file claims; `elements` what it holds.
  GgufWriter& Array(std::string key, uint32_t element_type, uint64_t count, const ByteVector& elements) {
    ByteVector bytes;
    Put(bytes, element_type);
    Put(bytes, count);
    bytes.insert(bytes.end(), elements.begin(), elements.end());
    return Raw(std::move(key), kArray, std::move(bytes));
  }
  // Any bytes under any type. Replaces the key's value unless `again`.
  GgufWriter& Raw(std::string key, uint32_t type, ByteVector value, bool again = false) {
    for (MetadataEntry& entry : metadata_) {
      if (!again && entry.key == key) {
        entry.type = type;
        entry.value = std::move(value);
        return *this;
      }
    }
    metadata_.push_back({std::move(key), type, std::move(value)});
    return *this;
  }
  GgufWriter& Remove(std::string_view key) {
    std::erase_if(metadata_, [&](const MetadataEntry& entry) { return entry.key == key; });
    return *this;
  }

  // ne[0] is the contiguous dimension. Replaces a tensor of the same name.
  GgufWriter& Tensor(std::string name, DType type, std::vector<uint64_t> ne, ByteVector data) {
    TensorEntry entry = {std::move(name), static_cast<uint32_t>(type), std::move(ne), std::move(data), {}, {}};
    for (TensorEntry& old : tensors) {
      if (old.name == entry.name) {
        old = std::move(entry);
        return *this;
      }
    }
    tensors.push_back(std::move(entry));
    return *this;
  }
  GgufWriter& RemoveTensor(std::string_view name) {
    std::erase_if(tensors, [&](const TensorEntry& entry) { return entry.name == name; });
    return *this;
  }

  ByteVector Build() const {
    ByteVector bytes(magic.begin(), magic.end());
    Put(bytes, version);
    Put(bytes, n_tensors.value_or(tensors.size()));
    Put(bytes, n_metadata.value_or(metadata_.size()));
    for (const MetadataEntry& entry : metadata_) {
      PutString(bytes, entry.key);
      Put(bytes, entry.type);
      bytes.insert(bytes.end(), entry.value.begin(), entry.value.end());
    }
    uint64_t offset = 0;
    for (const TensorEntry& tensor : tensors) {
      PutString(bytes, tensor.name);
      Put(bytes, tensor.n_dims.value_or(static_cast<uint32_t>(tensor.ne.size())));
      for (const uint64_t extent : tensor.ne) Put(bytes, extent);
      Put(bytes, tensor.type);
      Put(bytes, tensor.offset.value_or(offset));
      offset += (tensor.data.size() + alignment - 1) / alignment * alignment;
    }
    for (const TensorEntry& tensor : tensors) {
      bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
      bytes.insert(bytes.end(), tensor.data.begin(), tensor.data.end());
    }
    return bytes;
  }
  GgufFile Open(std::string name = "test.gguf") const { return GgufFile::FromBytes(Build(), std::move(name)); }

 private:
  struct MetadataEntry {
    std::string key;
    uint32_t type;
    ByteVector value;
  };

  template <typename T>
  static void Put(ByteVector& bytes, T value) {
    uint8_t raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes.insert(bytes.end(), raw, raw + sizeof value);
  }
  static void PutString(ByteVector& bytes, std::string_view text) {
    Put<uint64_t>(bytes, text.size());
    bytes.insert(bytes.end(), text.begin(), text.end());
  }
  template <typename T>
  GgufWriter& Scalar(std::string key, Type type, T value) {
    ByteVector bytes;
    Put(bytes, value);
    return Raw(std::move(key), type, std::move(bytes));
  }

  std::vector<MetadataEntry> metadata_;
};

}  // namespace thermocline
