#include "runtime/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <vector>

#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};
constexpr int kMaxTries = 100;  // names that other files may have taken

// What the handler removes; empty: nothing.
char temporary_name[4096];
volatile std::sig_atomic_t has_temporary = 0;

void RemoveAndDie(int signal) {
  if (has_temporary) unlink(temporary_name);
  std::signal(signal, SIG_DFL);
  raise(signal);
}

// Signals that somebody ignores (nohup) or handles stay as they are.
void HandleSignals(void (*from)(int), void (*to)(int)) {
  for (const int signal : kSignals) {
    struct sigaction action = {};
    if (sigaction(signal, nullptr, &action) == 0 && action.sa_handler == from) std::signal(signal, to);
  }
}

[[noreturn]] void Fail(const std::filesystem::path& path, int error) {
  throw Error("{}: cannot be written: {}. {}", path.string(), std::strerror(error),
              error == ENOSPC ? "Make room, or name a file on another disk." : "Name another file.");
}

}  // namespace

OutputFile::OutputFile(const std::filesystem::path& path) : path_(path) {
  namespace fs = std::filesystem;
  CHECK(!has_temporary);
  std::error_code error;
  if (fs::is_symlink(path_, error)) {
    const fs::path target = fs::weakly_canonical(path_, error);
    if (error) throw Error("{}: a link that leads nowhere: {}", path.string(), error.message());
    path_ = target;
  }
  const fs::file_status status = fs::status(path_, error);
  if (fs::exists(status) && !fs::is_regular_file(status))
    throw Error("{}: is {}, not a file that can be replaced. Name another file.", path.string(),
                fs::is_directory(status) ? "a folder" : "a device or pipe");
  if (path_.filename().empty()) throw Error("{}: names no file", path.string());
  for (int i = 0; fd_ < 0; ++i) {
    temporary_ = path_.parent_path() / fmt::format(".thermocline-{}-{}.tmp", getpid(), i);
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && (errno != EEXIST || i == kMaxTries)) Fail(path, errno);
  }
  const std::string name = fs::absolute(temporary_, error).string();
  if (!error && name.size() < sizeof temporary_name) {
    std::memcpy(temporary_name, name.c_str(), name.size() + 1);
    has_temporary = 1;
    HandleSignals(SIG_DFL, RemoveAndDie);
  }
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) close(fd_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
  HandleSignals(RemoveAndDie, SIG_DFL);
  has_temporary = 0;
}

void OutputFile::Write(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) Fail(path_, n < 0 ? errno : EIO);
    bytes = bytes.subspan(static_cast<size_t>(n));
    size_ += static_cast<uint64_t>(n);
  }
}

void OutputFile::Pad(uint64_t offset) {
  CHECK(offset >= size_);
  const std::vector<uint8_t> zeros(offset - size_);
  Write(zeros);
}

void OutputFile::Commit() {
  if (fsync(fd_) != 0) Fail(path_, errno);
  const int fd = fd_;
  fd_ = -1;
  if (close(fd) != 0) Fail(path_, errno);
  if (rename(temporary_.c_str(), path_.c_str()) != 0) Fail(path_, errno);
  temporary_.clear();
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  const int folder_fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_fd < 0) return;
  fsync(folder_fd);  // the file is whole in any case; this makes the new name last through a power cut
  close(folder_fd);
}

bool IsSameFile(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code error;
  return std::filesystem::equivalent(a, b, error) && !error;
}

}  // namespace thermocline
