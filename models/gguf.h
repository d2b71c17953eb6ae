// GGUF v2/v3 model files, memory-mapped and treated as hostile.
//
// Layout (little-endian): "GGUF" | u32 version | u64 n_tensors | u64 n_kv | kv... | tensor infos... | padding to
// general.alignment | tensor data. Format: ggml docs/gguf.md. PowerInfer's files begin with "PWRI" and are the same
// otherwise.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "models/dtype.h"

namespace thermocline {

class MappedFile;

// One array of a GGUF file; elements stay in the map, strings as views into it.
struct GgufArray {
  enum class Kind : uint8_t { kUnsigned, kSigned, kFloat, kBool, kString } kind;
  std::vector<uint64_t> unsigneds;        // kUnsigned, kBool
  std::vector<int64_t> signeds;           // kSigned
  std::vector<double> floats;             // kFloat
  std::vector<std::string_view> strings;  // kString
  size_t size() const;
};

using GgufValue = std::variant<uint64_t, int64_t, double, bool, std::string_view, GgufArray>;

// A tensor as it stands in the file. ne[0] is the contiguous dimension (K of a weight), ne[1] its rows (N).
struct Tensor {
  std::string name;
  DType type;
  int64_t ne[4];        // unused dimensions are 1
  uint64_t offset;      // absolute, in the file
  const uint8_t* data;  // (bytes) inside the map
  uint64_t bytes;
  uint64_t info_offset;  // where the file describes it, for errors
};

class GgufFile {
 public:
  // Throws Error with file, offset and field when anything does not hold. Every size is checked against the bytes left.
  static GgufFile Open(const std::filesystem::path& path);
  // The same from a copy of `bytes`; `name` stands for the path in errors.
  static GgufFile FromBytes(std::span<const uint8_t> bytes, std::string name);
  GgufFile(GgufFile&&) noexcept;
  GgufFile& operator=(GgufFile&&) noexcept;
  ~GgufFile();

  const std::string& path() const { return path_; }
  uint32_t version() const { return version_; }
  bool powerinfer() const { return powerinfer_; }  // one of PowerInfer's
  uint64_t file_bytes() const;
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }  // in file order
  const std::vector<Tensor>& tensors() const { return tensors_; }                               // in file order

  const GgufValue* Find(std::string_view key) const;      // nullptr when absent
  const Tensor* FindTensor(std::string_view name) const;  // nullptr when absent

  // metadata()[i] as it stands in the file: key, type and value.
  std::span<const uint8_t> RawMetadata(size_t i) const;
  uint64_t alignment() const { return alignment_; }  // of tensor data

  // How an error about a key or tensor begins: "path: byte 123: 'llama.block_count'".
  std::string Where(std::string_view key) const;
  std::string Where(const Tensor& tensor) const;

  // Typed metadata. `Get*` throws Error naming file and key when the key is absent or of another type; the
  // overload with `fallback` only when it is of another type. Any integer type serves where it fits. Numbers are
  // finite and within [min, max], or it throws.
  int64_t GetInt(std::string_view key, int64_t min, int64_t max) const;
  int64_t GetInt(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  double GetFloat(std::string_view key) const;
  double GetFloat(std::string_view key, double fallback) const;
  bool GetBool(std::string_view key, bool fallback) const;
  std::string_view GetString(std::string_view key) const;
  std::string_view GetString(std::string_view key, std::string_view fallback) const;
  const GgufArray* FindArray(std::string_view key, GgufArray::Kind kind) const;  // nullptr when absent;
                                                                                 // floats are finite

  // Throws Error if a page of the map could not be read since Open (the file shrank or the disk failed). Call after
  // the last read of tensor data: until then a lost page reads as zeros instead of raising SIGBUS.
  void CheckIntact() const;

  // What tells this file from others, and from itself before a change: a hash of its size, its time of change,
  // everything in front of the tensor data, and the first, middle and last 4 KiB of each tensor.
  uint64_t Fingerprint() const;
  // The same without the time of change, so that a copy is the same model.
  uint64_t Identity() const;

  // For who reads all tensor data once, front to back. Data that is not the file's, as where a model's tensors were
  // replaced, is left alone.
  void WillRead(const uint8_t* data, uint64_t bytes) const;  // soon: may be read from the disk ahead
  void DoneWith(const uint8_t* data, uint64_t bytes) const;  // takes no more of this process's memory

 private:
  friend class GgufParser;
  GgufFile();
  bool Holds(const uint8_t* data) const;
  [[noreturn]] void FailType(std::string_view key, const GgufValue& value, std::string_view wanted) const;
  const GgufValue& Need(std::string_view key) const;
  std::string path_;
  uint32_t version_ = 0;
  bool powerinfer_ = false;
  std::unique_ptr<MappedFile> map_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<Tensor> tensors_;
  static GgufFile Parse(MappedFile map, std::string path);
  std::vector<uint64_t> value_offsets_;  // where the value of metadata_[i] stands
  uint64_t metadata_end_ = 0;
  uint64_t alignment_ = 32;
  std::unordered_map<std::string_view, size_t> key_index_, tensor_index_;
};

}  // namespace thermocline
