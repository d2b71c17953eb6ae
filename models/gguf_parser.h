// Reads the header of a GGUF file into a GgufFile. Everything in it is hostile until checked here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "models/error.h"
#include "models/gguf.h"

namespace thermocline {

class GgufParser {
 public:
  explicit GgufParser(GgufFile& file);  // with its path and map set
  void Parse();                         // throws Error: "path: byte 123: field: what is wrong. What to do."

 private:
  // Every error of the parser. `offset` is where the field begins.
  template <typename... Args>
  [[noreturn]] void Fail(size_t offset, std::string_view field, fmt::format_string<Args...> format,
                         Args&&... args) const {
    throw Error("{}: byte {}: {} {}", file_.path_, offset, field, fmt::format(format, std::forward<Args>(args)...));
  }

  size_t Left() const { return size_ - pos_; }
  // The next `count` elements of `element_bytes` lie inside the file, or it throws.
  void Need(uint64_t count, size_t element_bytes, std::string_view field) const;
  template <typename T>
  T Read(std::string_view field);
  uint64_t ReadCount(uint64_t limit, size_t least_bytes, std::string_view field, std::string_view what);
  std::string_view ReadString(uint64_t limit, std::string_view field);
  bool ReadBool(std::string_view field);

  void ReadMagicAndVersion();
  void ReadMetadata(uint64_t index);
  GgufValue ReadValue(uint32_t type, const std::string& field);
  GgufArray ReadArray(const std::string& field);
  void ReadTensorInfo(uint64_t index);
  void ReadShape(Tensor& tensor, const std::string& field);
  void ReadType(Tensor& tensor, const std::string& field);
  uint64_t Alignment() const;
  void PlaceTensors(uint64_t alignment);
  void RefuseOverlaps() const;

  GgufFile& file_;
  const uint8_t* base_;
  size_t size_;
  size_t pos_ = 0;
  uint64_t elements_ = 0;  // of all arrays so far
};

}  // namespace thermocline
