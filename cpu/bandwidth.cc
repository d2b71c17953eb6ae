#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/error.h"

namespace thermocline {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int kPasses = 5;

// Fresh memory, huge pages where the system gives them: page walks are not what is measured.
class Memory {
 public:
  explicit Memory(int64_t bytes) : bytes_(bytes) {
    void* map = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw Error("measuring the read bandwidth: no memory for {} bytes", bytes);
    data_ = static_cast<char*>(map);
    madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  ~Memory() { munmap(data_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  int64_t bytes_;
  char* data_;
};

// Reads every line of [begin, end), prefetching `ahead_bytes` ahead (0: not at all).
int Read(const char* begin, const char* end, int64_t ahead_bytes) {
  __m128i sums[4] = {};
  for (const char* line = begin; line < end; line += kLineBytes) {
    // Past the end it is only a hint, and a wrong one costs nothing.
    if (ahead_bytes > 0) _mm_prefetch(line + ahead_bytes, _MM_HINT_T0);
    for (int i = 0; i < 4; ++i)
      sums[i] = _mm_add_epi32(sums[i], _mm_load_si128(reinterpret_cast<const __m128i*>(line) + i));
  }
  return _mm_cvtsi128_si32(_mm_add_epi32(_mm_add_epi32(sums[0], sums[1]), _mm_add_epi32(sums[2], sums[3])));
}

}  // namespace

double MeasureReadBandwidth(int n_threads, int64_t bytes) {
  bytes = std::max(kChunkBytes, (bytes + kChunkBytes - 1) / kChunkBytes * kChunkBytes);
  const Memory memory(bytes);
  Team team(n_threads);
  team.Run([&](Team::Member& member) {  // first touch where it will be read; zero pages would all be one
    member.For(bytes, kChunkBytes, [&](int64_t begin, int64_t end) {
      std::fill(memory.data() + begin, memory.data() + end, static_cast<char>(begin >> 20 | 1));
    });
  });
  double best_ns = 0;
  std::atomic<int> sink{0};
  for (int64_t ahead_bytes : {0, 1024, 2048, 4096}) {
    for (int pass = 0; pass < kPasses; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      team.Run([&](Team::Member& member) {
        member.For(bytes, kChunkBytes, [&](int64_t begin, int64_t end) {
          sink.fetch_add(Read(memory.data() + begin, memory.data() + end, ahead_bytes), std::memory_order_relaxed);
        });
      });
      const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
      if (best_ns == 0 || ns < best_ns) best_ns = ns;
    }
  }
  return static_cast<double>(bytes) / best_ns;
}

}  // namespace thermocline
