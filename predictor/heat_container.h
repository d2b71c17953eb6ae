// A .heat file as a container of named arrays, for the parts that write and read it (predictor/heat.cc,
// heat_predictors.cc).
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "models/check.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/gguf_writer.h"
#include "models/hash.h"
#include "models/quoted.h"

namespace thermocline {

inline constexpr char kHeatChecksumKey[] = "heat.checksum";
// Where the checksum stands, 16 hexadecimal digits: behind "GGUF", the version, both counts, its key's length and
// letters, its type and its own length.
inline constexpr size_t kHeatChecksumAt = 4 + 4 + 8 + 8 + 8 + (sizeof kHeatChecksumKey - 1) + 4 + 8;
inline constexpr size_t kHeatChecksumDigits = 16;

inline std::string HeatHex(uint64_t value) { return fmt::format("{:016x}", value); }

// Of the file with zeros for the checksum itself.
inline std::string HeatChecksum(std::span<const uint8_t> bytes) {
  Hash hash;
  hash.Add(bytes.first(kHeatChecksumAt));
  hash.Add(bytes.subspan(kHeatChecksumAt + kHeatChecksumDigits));
  return HeatHex(hash.value());
}

inline std::string HeatLayerKey(size_t layer, const char* name) { return fmt::format("blk.{}.{}", layer, name); }

// Collects the tensors of a file, so that header and data have one order.
class HeatWriter {
 public:
  GgufHeader header;

  template <typename T>
  void Add(const std::string& name, std::span<const T> values, std::vector<int64_t> ne) {
    CHECK(std::accumulate(ne.begin(), ne.end(), int64_t{1}, std::multiplies<>()) == std::ssize(values));
    header.AddTensor(name, DType::kF32, ne);
    std::vector<uint8_t>& bytes = data_.emplace_back(values.size() * sizeof(float));
    for (size_t i = 0; i < values.size(); ++i) {
      const auto value = static_cast<float>(values[i]);
      std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
    }
  }
  template <typename T>
  void Add(const std::string& name, const std::vector<T>& values) {
    Add(name, std::span<const T>(values), {std::ssize(values)});
  }

  // Blocks of that type, (rows, n).
  void AddBlocks(const std::string& name, DType type, const std::vector<uint8_t>& blocks, int64_t n, int64_t rows) {
    const int64_t ne[] = {n, rows};
    CHECK(n / Info(type).block * Info(type).block_bytes * rows == std::ssize(blocks));
    header.AddTensor(name, type, ne);
    data_.push_back(blocks);
  }

  // The whole file.
  std::vector<uint8_t> Finish() const {
    const GgufLayout layout = header.LayOut(32);
    std::vector<uint8_t> bytes(layout.file_bytes);
    std::copy(layout.header.begin(), layout.header.end(), bytes.begin());
    for (size_t i = 0; i < data_.size(); ++i)
      std::copy(data_[i].begin(), data_[i].end(), bytes.begin() + static_cast<std::ptrdiff_t>(layout.offsets[i]));
    const std::string checksum = HeatChecksum(bytes);
    std::copy(checksum.begin(), checksum.end(), bytes.begin() + kHeatChecksumAt);
    return bytes;
  }

 private:
  std::vector<std::vector<uint8_t>> data_;
};

// Throws Error for what is missing, of another shape, or out of bounds.
class HeatReader {
 public:
  explicit HeatReader(const GgufFile& file) : file_(file) {}

  template <typename T>
  void Read(const std::string& name, int64_t n, double min, double max, std::vector<T>& out, int64_t rows = 1) const {
    const Tensor* tensor = Find(name, DType::kF32, n, rows);
    out.resize(static_cast<size_t>(n * rows));
    for (size_t i = 0; i < out.size(); ++i) {
      float value;
      std::memcpy(&value, tensor->data + i * sizeof value, sizeof value);
      if (!(value >= min && value <= max))
        throw Error("{}: number {} is {}, not within {} and {}; profile the model anew", file_.Where(*tensor), i, value,
                    min, max);
      out[i] = value;
    }
  }

  // Blocks of Q8_0, (rows, n), whose scales are numbers.
  void ReadBlocks(const std::string& name, int64_t n, int64_t rows, std::vector<uint8_t>& out) const {
    const Tensor* tensor = Find(name, DType::kQ8_0, n, rows);
    const DTypeInfo& type = Info(DType::kQ8_0);
    out.assign(tensor->data, tensor->data + n / type.block * type.block_bytes * rows);
    for (size_t at = 0; at < out.size(); at += static_cast<size_t>(type.block_bytes)) {
      uint16_t scale;
      std::memcpy(&scale, out.data() + at, sizeof scale);
      if (!std::isfinite(HalfToFloat(scale)))
        throw Error("{}: the scale of a block is no number; train the predictors anew", file_.Where(*tensor));
    }
  }

  uint64_t ReadHex(std::string_view key) const {
    const std::string text(file_.GetString(key));
    const bool hex = text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!hex) throw Error("{}: not 16 hexadecimal digits; profile the model anew", file_.Where(key));
    return std::stoull(text, nullptr, 16);
  }

  int64_t Length(const std::string& name) const {
    const Tensor* tensor = file_.FindTensor(name);
    return tensor ? tensor->ne[0] : 0;
  }

 private:
  const Tensor* Find(const std::string& name, DType type, int64_t n, int64_t rows) const {
    const Tensor* tensor = file_.FindTensor(name);
    if (!tensor) throw Error("{}: the tensor {} is missing; profile the model anew", file_.path(), Quoted(name));
    const int64_t ne[] = {n, rows, 1, 1};
    if (tensor->type != type || !std::equal(ne, ne + 4, tensor->ne))
      throw Error("{}: not ({}, {}) numbers in {}, as this model needs; profile it anew", file_.Where(*tensor), rows, n,
                  Info(type).name);
    return tensor;
  }

  const GgufFile& file_;
};

}  // namespace thermocline
