#include "cpu/buffer.h"

#include <sys/mman.h>

#include "models/error.h"

namespace thermocline {

Buffer::Buffer(int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    throw Error("not enough memory: {} needs {} MB; close other programs, use a smaller model or a smaller -c", what,
                bytes >> 20);
  madvise(p, bytes, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(p);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

}  // namespace thermocline
