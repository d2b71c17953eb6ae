#include "cpu/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include "models/error.h"

namespace thermocline {

namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

}  // namespace

Buffer::Buffer(int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  // Before Linux 6.7 a map begins at any page: ask for one huge page more and give back what is in front.
  const int64_t spare = bytes >= kHugePage ? kHugePage : 0;
  void* p = mmap(nullptr, bytes + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error("not enough memory: {} needs {} MB; close other programs, use a smaller model or a smaller -c", what,
                bytes >> 20);
  data_ = static_cast<uint8_t*>(p);
  if (spare) {
    const int64_t front = -reinterpret_cast<intptr_t>(data_) & (kHugePage - 1);
    if (front) munmap(data_, front);
    data_ += front;
    // The rest behind; munmap wants whole pages, and takes the whole page that `bytes` ends in as used.
    const int64_t page = sysconf(_SC_PAGESIZE), used = (bytes + page - 1) / page * page;
    if (bytes + spare - front > used) munmap(data_ + used, bytes + spare - front - used);
  }
  madvise(data_, bytes, MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace thermocline
