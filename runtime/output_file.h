// A file that appears under its name only when it is whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

namespace thermocline {

// Written beside its name and renamed by Commit. Without Commit, after an error, or when the process is interrupted,
// what stood under the name before still does, and nothing else is left. One at a time.
class OutputFile {
 public:
  // Throws Error where nothing can be written: no folder, no permission, a name that is no regular file's. A link is
  // followed: its target is replaced.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;

  // Appends. Throws Error: a full disk.
  void Write(std::span<const uint8_t> bytes);
  void Pad(uint64_t offset);  // with zeros up to `offset`
  uint64_t size() const { return size_; }
  // Brings everything to the disk, then replaces the file of that name. Throws Error.
  void Commit();

 private:
  std::filesystem::path path_, temporary_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

// Whether both names lead to the same existing file, through links of either kind.
bool IsSameFile(const std::filesystem::path& a, const std::filesystem::path& b);

}  // namespace thermocline
