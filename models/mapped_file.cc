#include "models/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#include "models/check.h"
#include "models/error.h"
#include "models/limits.h"

namespace thermocline {
namespace {

// What the handler looks at. A slot is taken by setting `begin` last and given back by clearing it first, so the
// handler sees either nothing or a whole map; a reader of a map keeps it alive, so its slot cannot change under it.
struct Slot {
  std::atomic<bool> taken{false};
  std::atomic<uintptr_t> begin{0};  // 0: no map
  std::atomic<uintptr_t> end{0};
  std::atomic<bool> damaged{false};
};
std::array<Slot, kMaxMappedFiles> slots;
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

struct sigaction former_action;
uintptr_t page_bytes;

// Whoever handled SIGBUS before us gets what is not ours.
void CallFormerHandler(int signal, siginfo_t* info, void* context) {
  if ((former_action.sa_flags & SA_SIGINFO) != 0) {
    former_action.sa_sigaction(signal, info, context);
  } else if (former_action.sa_handler != SIG_DFL && former_action.sa_handler != SIG_IGN) {
    former_action.sa_handler(signal);
  } else if (former_action.sa_handler == SIG_IGN && info->si_code <= 0) {
    return;  // sent by a process; a fault is never ignored
  } else {
    // The faulting instruction runs again on return, this time with the default action: death, with a core.
    struct sigaction fatal = {};
    fatal.sa_handler = SIG_DFL;
    sigaction(SIGBUS, &fatal, nullptr);
    if (info->si_code <= 0) raise(signal);  // sent by a process: nothing would fault again
  }
}

// Runs on any thread, at any instruction that reads a map: atomics and system calls only.
void OnSigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    if (info->si_code <= 0 || begin == 0 || address < begin || address >= slot.end.load(std::memory_order_relaxed)) {
      continue;
    }
    slot.damaged.store(true, std::memory_order_release);
    // The raw call: mmap(2) is safe here, its wrapper does not promise to be.
    const long page = syscall(SYS_mmap, address & ~(page_bytes - 1), page_bytes, PROT_READ,
                              MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == -1) break;
    errno = saved_errno;
    return;
  }
  CallFormerHandler(signal, info, context);
  errno = saved_errno;
}

void InstallHandler() {
  static std::once_flag once;
  std::call_once(once, [] {
    page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = OnSigbus;
    // ONSTACK: a thread that has an alternate stack gets its handler there. NODEFER: the former handler may fault too.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(SIGBUS, &action, &former_action) == 0);
  });
}

int TakeSlot(const void* data, size_t size) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  for (size_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots[i];
    if (slot.taken.exchange(true)) continue;
    slot.damaged.store(false);
    slot.end.store(begin + (size + page_bytes - 1) / page_bytes * page_bytes);
    slot.begin.store(begin, std::memory_order_release);
    return static_cast<int>(i);
  }
  return -1;
}

constexpr std::align_val_t kAlignment{64};

#ifndef MADV_POPULATE_READ  // Linux 5.14
#define MADV_POPULATE_READ 22
#endif

}  // namespace

MappedFile MappedFile::Open(const std::filesystem::path& path) {
  MappedFile map;
  // Without NONBLOCK, opening a named pipe would wait for a writer.
  map.fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (map.fd_ < 0)
    throw Error("{}: cannot open: {}. Check the path and its permissions.", path.string(), strerror(errno));
  struct stat status = {};
  CHECK(fstat(map.fd_, &status) == 0);
  if (!S_ISREG(status.st_mode)) {
    throw Error("{}: is {}, not a file. Name the model file itself.", path.string(),
                S_ISDIR(status.st_mode) ? "a folder" : "a pipe or device");
  }
  if (status.st_size == 0) throw Error("{}: byte 0: is empty. Download the file again.", path.string());

  const auto size = static_cast<size_t>(status.st_size);
  InstallHandler();
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, map.fd_, 0);
  if (data == MAP_FAILED) {
    throw Error("{}: cannot map its {} bytes: {}. Free memory, or raise the limit on address space (ulimit -v).",
                path.string(), size, strerror(errno));
  }
  map.data_ = static_cast<const uint8_t*>(data);
  map.size_ = size;
  map.slot_ = TakeSlot(data, size);
  if (map.slot_ < 0) {
    throw Error("{}: {} files are mapped already, which is the limit. Close some of them.", path.string(),
                kMaxMappedFiles);
  }
  return map;
}

MappedFile MappedFile::FromBytes(std::span<const uint8_t> bytes) {
  MappedFile map;
  auto* copy = static_cast<uint8_t*>(::operator new(bytes.size(), kAlignment));
  if (!bytes.empty()) std::memcpy(copy, bytes.data(), bytes.size());
  map.data_ = copy;
  map.size_ = bytes.size();
  return map;
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    Release();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    fd_ = std::exchange(other.fd_, -1);
    slot_ = std::exchange(other.slot_, -1);
  }
  return *this;
}

MappedFile::~MappedFile() { Release(); }

void MappedFile::Release() noexcept {
  auto* memory = const_cast<uint8_t*>(std::exchange(data_, nullptr));
  const int fd = std::exchange(fd_, -1);
  const int slot = std::exchange(slot_, -1);
  if (fd < 0) {
    if (memory != nullptr) ::operator delete(memory, kAlignment);
    return;
  }
  if (slot >= 0) slots[static_cast<size_t>(slot)].begin.store(0);
  if (memory != nullptr) munmap(memory, size_);
  if (slot >= 0) slots[static_cast<size_t>(slot)].taken.store(false);
  close(fd);
}

void MappedFile::Advise(size_t offset, size_t bytes, int advice) const {
  if (fd_ < 0 || bytes == 0) return;
  const size_t begin = offset / page_bytes * page_bytes;
  madvise(const_cast<uint8_t*>(data_) + begin, std::min(bytes + offset - begin, size_ - begin), advice);
}

void MappedFile::WillRead(size_t offset, size_t bytes) const { Advise(offset, bytes, MADV_WILLNEED); }
void MappedFile::Map(size_t offset, size_t bytes) const { Advise(offset, bytes, MADV_POPULATE_READ); }
void MappedFile::DoneWith(size_t offset, size_t bytes) const { Advise(offset, bytes, MADV_DONTNEED); }

int64_t MappedFile::modified_ns() const {
  struct stat status = {};
  if (fd_ < 0 || fstat(fd_, &status) != 0) return 0;
  return int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

bool MappedFile::damaged() const {
  if (fd_ < 0) return false;
  struct stat status = {};
  const bool shrank = fstat(fd_, &status) != 0 || static_cast<size_t>(status.st_size) < size_;
  return shrank || slots[static_cast<size_t>(slot_)].damaged.load(std::memory_order_acquire);
}

}  // namespace thermocline
