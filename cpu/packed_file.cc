#include "cpu/packed_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "models/check.h"
#include "models/error.h"
#include "models/hash.h"

namespace thermocline {
namespace {

constexpr std::string_view kMagic = "thermocline pack";
constexpr uint64_t kVersion = 1;  // of the header; that of the panels is part of the identity
// Chunks that are checked, written and claimed at once; as large as huge pages, so that the page cache can use them.
constexpr size_t kChunkBytes = size_t{2} << 20;
constexpr size_t kChunksAhead = 16;  // read from the disk ahead of being checked

struct Chunks {
  size_t total;
  size_t count() const { return (total + kChunkBytes - 1) / kChunkBytes; }
  size_t size(size_t i) const { return std::min(kChunkBytes, total - i * kChunkBytes); }
};

size_t RoundUp(size_t n) { return (n + kChunkBytes - 1) / kChunkBytes * kChunkBytes; }

void Append(std::vector<uint8_t>& bytes, uint64_t value) {
  bytes.resize(bytes.size() + sizeof value);
  std::memcpy(bytes.data() + bytes.size() - sizeof value, &value, sizeof value);
}

// Eight sums and sums of sums, one per word of a line: as fast as memory is read, and it sees any change of a line and
// any exchange of two. (bytes: a multiple of 64)
uint64_t Checksum(const uint8_t* p, size_t bytes) {
  constexpr int kWords = 8;
  uint64_t sum[kWords] = {}, sums[kWords] = {};
  for (size_t i = 0; i < bytes; i += 8 * kWords)
    for (int j = 0; j < kWords; ++j) {
      uint64_t word;
      std::memcpy(&word, p + i + 8 * j, 8);
      sum[j] += word;
      sums[j] += sum[j];
    }
  Hash hash;
  for (int j = 0; j < kWords; ++j) {
    hash.Add(sum[j]);
    hash.Add(sums[j]);
  }
  return hash.value();
}

std::vector<uint8_t> HeaderBeforeChecksums(const PackedIdentity& identity, size_t weight_bytes) {
  std::vector<uint8_t> header;
  for (const char c : kMagic) header.push_back(static_cast<uint8_t>(c));
  Append(header, kVersion);
  Append(header, weight_bytes);
  Append(header, identity.size());
  header.insert(header.end(), identity.begin(), identity.end());
  return header;
}

uint64_t HashOf(std::span<const uint8_t> bytes) {
  Hash hash;
  hash.Add(bytes);
  return hash.value();
}

// The file under the name it has until it is whole. A process that died leaves it behind, and the next one writes over
// it; two that write at the same time keep out of each other's way by a lock.
class PartialFile {
 public:
  explicit PartialFile(const std::filesystem::path& path) : path_(path), partial_(path.string() + ".partial") {
    fd_ = open(partial_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) Fail(errno);
    struct stat held = {}, named = {};
    if (flock(fd_, LOCK_EX | LOCK_NB) != 0 || fstat(fd_, &held) != 0 || stat(partial_.c_str(), &named) != 0 ||
        held.st_ino != named.st_ino) {
      close(fd_);
      throw Error("another process is writing it");
    }
  }
  PartialFile(const PartialFile&) = delete;
  ~PartialFile() {
    if (!renamed_) unlink(partial_.c_str());
    close(fd_);
  }

  void Reserve(size_t bytes) {
    rlimit limit = {};  // beyond it a signal would end the process
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < bytes) Fail(EFBIG);
    if (ftruncate(fd_, 0) != 0) Fail(errno);
    if (fallocate(fd_, 0, 0, static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS) Fail(errno);
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) Fail(errno);
  }
  // 0, or what went wrong. From any thread.
  int Write(std::span<const uint8_t> bytes, size_t offset) {
    while (!bytes.empty()) {
      const ssize_t n = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return n < 0 ? errno : EIO;
      bytes = bytes.subspan(static_cast<size_t>(n));
      offset += static_cast<size_t>(n);
    }
    return 0;
  }
  void Rename() {
    if (rename(partial_.c_str(), path_.c_str()) != 0) Fail(errno);
    renamed_ = true;
  }
  [[noreturn]] void Fail(int error) const { throw Error("{}: {}", partial_.string(), std::strerror(error)); }

 private:
  const std::filesystem::path path_, partial_;
  int fd_;
  bool renamed_ = false;
};

}  // namespace

std::unique_ptr<PackedFile> PackedFile::Open(const std::filesystem::path& path, const PackedIdentity& identity,
                                             int64_t weight_bytes, Team& team,
                                             const std::function<void(int64_t)>& progress, std::string& reason) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error) return nullptr;
  const Chunks chunks{static_cast<size_t>(weight_bytes)};
  std::vector<uint8_t> expected = HeaderBeforeChecksums(identity, chunks.total);
  const size_t checksums_at = expected.size(), hash_at = checksums_at + 8 * chunks.count();
  const size_t offset = RoundUp(hash_at + 8);
  try {
    MappedFile map = MappedFile::Open(path);
    if (map.size() < checksums_at || std::memcmp(map.data(), expected.data(), checksums_at) != 0) {
      reason = "it belongs to another model, or to another version of this one or of the program";
      return nullptr;
    }
    if (map.size() != offset + chunks.total) {
      reason = "it was cut short";
      return nullptr;
    }
    std::vector<uint64_t> checksums(chunks.count() + 1);
    std::memcpy(checksums.data(), map.data() + checksums_at, 8 * checksums.size());
    std::atomic<bool> good = HashOf({map.data(), hash_at}) == checksums.back();
    std::atomic<int64_t> done = 0;
    team.Run([&](Team::Member& member) {
      member.For(static_cast<int64_t>(chunks.count()), 1, [&](int64_t i, int64_t) {
        if (!good) return;
        const size_t begin = offset + i * kChunkBytes;
        if (i + kChunksAhead < chunks.count())
          map.WillRead(begin + kChunksAhead * kChunkBytes, chunks.size(i + kChunksAhead));
        map.Map(begin, chunks.size(i));
        if (Checksum(map.data() + begin, chunks.size(i)) != checksums[i]) good = false;
        const auto now = done.fetch_add(static_cast<int64_t>(chunks.size(i)), std::memory_order_relaxed);
        if (member.index() == 0 && progress) progress(now);
      });
    });
    if (good && !map.damaged()) return std::unique_ptr<PackedFile>(new PackedFile(std::move(map), path, offset));
    reason = "it is damaged";
  } catch (const Error& e) {
    reason = e.what();
  }
  return nullptr;
}

void PackedFile::Write(const std::filesystem::path& path, const PackedIdentity& identity,
                       std::span<const uint8_t> weights, Team& team, const std::function<void(int64_t)>& progress) {
  CHECK(weights.size() % 64 == 0);
  const Chunks chunks{weights.size()};
  std::vector<uint8_t> header = HeaderBeforeChecksums(identity, chunks.total);
  const size_t offset = RoundUp(header.size() + 8 * chunks.count() + 8);
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  if (error) throw Error("{}: {}", path.parent_path().string(), error.message());
  PartialFile file(path);
  file.Reserve(offset + chunks.total);

  std::vector<uint64_t> checksums(chunks.count());
  std::atomic<int> failed = 0;
  std::atomic<int64_t> done = 0;
  team.Run([&](Team::Member& member) {
    member.For(static_cast<int64_t>(chunks.count()), 1, [&](int64_t i, int64_t) {
      if (failed) return;
      const std::span<const uint8_t> chunk = weights.subspan(i * kChunkBytes, chunks.size(i));
      checksums[i] = Checksum(chunk.data(), chunk.size());
      if (const int e = file.Write(chunk, offset + i * kChunkBytes)) failed = e;
      const auto now = done.fetch_add(static_cast<int64_t>(chunk.size()), std::memory_order_relaxed);
      if (member.index() == 0 && progress) progress(now);
    });
  });
  for (const uint64_t checksum : checksums) Append(header, checksum);
  Append(header, HashOf(header));
  if (!failed) failed = file.Write(header, 0);
  if (failed) file.Fail(failed);
  file.Rename();
}

}  // namespace thermocline
