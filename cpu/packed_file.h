// Packed weights kept from one start to the next, in a file that is mapped as it stands.
//
//   magic | version | what the weights are | checksum of each 2 MiB of weights | hash of all that | to 2 MiB: zeros
//   the weights, as in memory
//
// Nothing of it is parsed: what a header must be is computed and compared. A file that is cut short, that holds another
// model's weights or another layout's, or whose weights do not have their checksums is not used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/team.h"
#include "models/mapped_file.h"

namespace thermocline {

// What the weights depend on, in bytes to compare: the model file's fingerprint, the version of the packed layout,
// types and shapes.
using PackedIdentity = std::vector<uint8_t>;

class PackedFile {
 public:
  // Maps the file and checks every byte, in parallel. nullptr when there is none, or when it cannot be used: then with
  // a `reason`. progress(bytes checked) may be empty.
  static std::unique_ptr<PackedFile> Open(const std::filesystem::path& path, const PackedIdentity& identity,
                                          int64_t weight_bytes, Team& team,
                                          const std::function<void(int64_t)>& progress, std::string& reason);
  // Makes it of `weights` (a multiple of 64 bytes), under another name until it is whole. It is not forced to the disk:
  // after a power cut the checksums tell. Throws Error; then nothing is left but what was there before.
  static void Write(const std::filesystem::path& path, const PackedIdentity& identity, std::span<const uint8_t> weights,
                    Team& team, const std::function<void(int64_t)>& progress);

  const uint8_t* weights() const { return map_.data() + offset_; }
  bool damaged() const { return map_.damaged(); }
  const std::string& path() const { return path_; }

 private:
  PackedFile(MappedFile map, std::string path, size_t offset)
      : map_(std::move(map)), path_(std::move(path)), offset_(offset) {}
  MappedFile map_;
  std::string path_;
  size_t offset_;
};

}  // namespace thermocline
