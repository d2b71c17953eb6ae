#include <emmintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/error.h"

namespace thermocline {
namespace {

constexpr int64_t kLineBytes = 64;
constexpr int64_t kChunkBytes = 1 << 20;
constexpr int kRounds = 3;  // of all patterns
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

struct Pattern {
  int64_t ahead_bytes;  // of the prefetch; 0: none
  int n_streams;        // that a thread reads at once
};
constexpr Pattern kPatterns[] = {{0, 1},    {512, 1},  {1024, 1}, {2048, 1}, {4096, 1},
                                 {8192, 1}, {1024, 4}, {2048, 4}, {4096, 4}};

// Reads every line of [begin, end), whose length is a multiple of the streams' lines. Not watched by sanitizers, under
// which a gigabyte takes a minute.
__attribute__((no_sanitize("address"), no_sanitize("thread"), no_sanitize("undefined"))) int Read(
    const char* begin, const char* end, const Pattern& pattern) {
  __m128i sums[4] = {};
  const int64_t stream_bytes = (end - begin) / pattern.n_streams;
  for (const char* first = begin; first < begin + stream_bytes; first += kLineBytes)
    for (int stream = 0; stream < pattern.n_streams; ++stream) {
      const char* line = first + stream * stream_bytes;
      // Past the end it is only a hint, and a wrong one costs nothing.
      if (pattern.ahead_bytes > 0) _mm_prefetch(line + pattern.ahead_bytes, _MM_HINT_T0);
      for (int i = 0; i < 4; ++i)
        sums[i] = _mm_add_epi32(sums[i], _mm_load_si128(reinterpret_cast<const __m128i*>(line) + i));
    }
  return _mm_cvtsi128_si32(_mm_add_epi32(_mm_add_epi32(sums[0], sums[1]), _mm_add_epi32(sums[2], sums[3])));
}

}  // namespace

struct ReadProbe::Impl {
  Impl(int n_threads, int64_t bytes) : bytes(bytes), memory(bytes), team(n_threads) {
    team.Run([&](Team::Member& member) {  // first touch where it will be read; zero pages would all be one
      member.For(bytes, kChunkBytes, [&](int64_t begin, int64_t end) {
        std::fill(memory.data() + begin, memory.data() + end, static_cast<char>(begin >> 20 | 1));
      });
    });
  }

  double PassNs(const Pattern& pattern) {
    const auto start = std::chrono::steady_clock::now();
    team.Run([&](Team::Member& member) {
      member.For(bytes, kChunkBytes, [&](int64_t begin, int64_t end) {
        sink.fetch_add(Read(memory.data() + begin, memory.data() + end, pattern), std::memory_order_relaxed);
      });
    });
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
  }

  const int64_t bytes;
  Memory memory;
  Team team;
  std::atomic<int> sink{0};
  Pattern best{};
};

ReadProbe::ReadProbe(int n_threads, int64_t bytes)
    : impl_(std::make_unique<Impl>(n_threads,
                                   std::max(kChunkBytes, (bytes + kChunkBytes - 1) / kChunkBytes * kChunkBytes))) {
  double best_ns = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round)
    for (const Pattern& pattern : kPatterns)
      if (const double ns = impl_->PassNs(pattern); ns < best_ns) {
        best_ns = ns;
        impl_->best = pattern;
      }
}

ReadProbe::~ReadProbe() = default;

double ReadProbe::Measure() {
  double best_ns = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) best_ns = std::min(best_ns, impl_->PassNs(impl_->best));
  return static_cast<double>(impl_->bytes) / best_ns;
}

}  // namespace thermocline
