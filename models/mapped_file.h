// A file mapped for reading that survives being cut short.
//
// Reading a page of a map that the file no longer reaches raises SIGBUS. A handler, installed with the first map, puts
// a page of zeros there and marks the map as damaged, so that the reader ends with an Error instead of a dead process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace thermocline {

class MappedFile {
 public:
  // Throws Error when `path` is not a regular file that can be read, is empty, or cannot be mapped.
  static MappedFile Open(const std::filesystem::path& path);
  // A copy of `bytes`, 64-byte aligned and no longer than they are. For tests and fuzzing.
  static MappedFile FromBytes(std::span<const uint8_t> bytes);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  // Advice about bytes [offset, offset + bytes) of the file; all of it costs speed only when it is not followed, so
  // failures are ignored. From any thread.
  void WillRead(size_t offset, size_t bytes) const;  // reading them from the disk may begin
  void Map(size_t offset, size_t bytes) const;       // maps their pages at once, instead of at each first touch
  void DoneWith(size_t offset, size_t bytes) const;  // they need no memory of this process: read again, they map again
  int64_t modified_ns() const;                       // time of the last change, since 1970; 0 of FromBytes
  bool damaged() const;  // the file is shorter than it was at Open, or a page could not be read and read as zeros

 private:
  MappedFile() = default;
  void Release() noexcept;
  void Advise(size_t offset, size_t bytes, int advice) const;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;    // kept open to see whether the file shrank: inside its last page that raises no signal
  int slot_ = -1;  // in the handler's table; -1: owned memory, not a map
};

}  // namespace thermocline
