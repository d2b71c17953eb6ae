#include "cpu/team.h"

#include <emmintrin.h>
#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>

#include "cpu/topology.h"
#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

// How long a waiting member spins before it sleeps. A sleeper runs again 30 to 50 us after it was woken (measured on a
// Xeon guest), so spinning for somewhat longer at most triples the price of a wait; between ops the wait is a few us.
constexpr std::chrono::nanoseconds kSpin{80'000};
// Where members outnumber the CPUs, whoever spins holds up the one it waits for.
constexpr std::chrono::nanoseconds kSpinOversubscribed{1'000};

constexpr size_t kLine = 64;

uint64_t NextTeamId() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

struct Team::Shared {
  int size;
  std::chrono::nanoseconds spin;
  uint64_t id = NextTeamId();
  std::vector<cpu_set_t> binding;  // (size): where each member may run; empty: anywhere

  // Number of the current op in the upper half, its next unclaimed chunk in the lower: so a late member cannot claim
  // from an op it does not know yet.
  alignas(kLine) std::atomic<uint64_t> claim{0};
  alignas(kLine) std::atomic<int64_t> done{0};  // chunks of the current op
  alignas(kLine) std::atomic<int> arrived{0};   // members at the current Barrier
  alignas(kLine) std::atomic<uint32_t> op{0};   // what waiters wait on

  void Bind(const Topology& topology);
};

// One CPU for each member where the team takes all cores. A smaller team may use any of the cores (the fast ones, if
// they suffice), one CPU of each: were it pinned, two processes of a few threads would sit on the same cores.
void Team::Shared::Bind(const Topology& topology) {
  const int n_cpus = static_cast<int>(topology.team_cpus.size());
  if (size > n_cpus || (size == 1 && topology.fast_cores == n_cpus)) return;
  const int n_shared = size <= topology.fast_cores ? topology.fast_cores : n_cpus;
  for (int member = 0; member < size; ++member) {
    cpu_set_t& set = binding.emplace_back();
    CPU_ZERO(&set);
    if (size == n_cpus) {
      CPU_SET(topology.team_cpus[member], &set);
    } else {
      for (int i = 0; i < n_shared; ++i) CPU_SET(topology.team_cpus[i], &set);
    }
  }
}

namespace {

// Puts the calling thread where a member belongs. Threads of the OpenMP pool stay there, and pay a system call only
// when they change team; the caller of Run gets its own affinity back. An affinity that cannot be had (the mask shrank
// since) costs speed only, so failures are ignored.
class Binding {
 public:
  Binding(uint64_t team, int index, const std::vector<cpu_set_t>& sets) : restore_(index == 0 && !sets.empty()) {
    if (restore_) {
      restore_ = sched_getaffinity(0, sizeof original_, &original_) == 0;
      if (restore_) sched_setaffinity(0, sizeof(cpu_set_t), &sets[0]);
      return;
    }
    if (index == 0) return;
    thread_local uint64_t bound_team = 0;
    thread_local int bound_index = 0;
    thread_local cpu_set_t own;  // as it was before any team
    if (bound_team == team && bound_index == index) return;
    if (bound_team == 0) sched_getaffinity(0, sizeof own, &own);
    bound_team = team;
    bound_index = index;
    sched_setaffinity(0, sizeof(cpu_set_t), sets.empty() ? &own : &sets[index]);
  }
  ~Binding() {
    if (restore_) sched_setaffinity(0, sizeof original_, &original_);
  }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

 private:
  cpu_set_t original_;
  bool restore_;
};

}  // namespace

Team::Team(int n_threads) : shared_(std::make_unique<Shared>()) {
  if (n_threads > kMaxThreads) throw Error("{} threads asked for; at most {} are possible", n_threads, kMaxThreads);
  const Topology topology = DetectTopology();
  shared_->size = n_threads > 0 ? n_threads : std::min(topology.DefaultThreads(), kMaxThreads);
  const double cpus = std::min(static_cast<double>(topology.affinity_cpus), topology.cpu_quota);
  shared_->spin = shared_->size > cpus ? kSpinOversubscribed : kSpin;
  shared_->Bind(topology);
}

Team::~Team() = default;

int Team::size() const { return shared_->size; }

void Team::RunErased(void (*call)(const void*, Member&), const void* fn) {
  const uint32_t first_op = shared_->op.load(std::memory_order_relaxed);
#pragma omp parallel num_threads(shared_->size)
  {
    const int index = omp_get_thread_num();
    const Binding binding(shared_->id, index, shared_->binding);
    // OpenMP may give fewer threads than asked for (OMP_THREAD_LIMIT, a region around us): then there are fewer
    // members.
    Member member(*this, index, omp_get_num_threads(), first_op);
    call(fn, member);
  }
}

Team::Member::Member(Team& team, int index, int n_members, uint32_t op)
    : team_(team), index_(index), n_members_(n_members), op_(op) {}

int64_t Team::Member::Claim(int64_t n_chunks) {
  CHECK(n_chunks > 0 && n_chunks <= UINT32_MAX);
  std::atomic<uint64_t>& claim = team_.shared_->claim;
  uint64_t current = claim.load(std::memory_order_relaxed);
  do {
    if (current >> 32 != op_ || (current & UINT32_MAX) >= static_cast<uint64_t>(n_chunks)) return -1;
  } while (!claim.compare_exchange_weak(current, current + 1, std::memory_order_relaxed));
  return static_cast<int64_t>(current & UINT32_MAX);
}

bool Team::Member::Finish(int64_t n_done, int64_t n_chunks) {
  return team_.shared_->done.fetch_add(n_done, std::memory_order_acq_rel) + n_done == n_chunks;
}

bool Team::Member::ArriveLast() {
  return team_.shared_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == n_members_;
}

void Team::Member::Open() {
  Shared& shared = *team_.shared_;
  ++op_;
  shared.done.store(0, std::memory_order_relaxed);
  shared.arrived.store(0, std::memory_order_relaxed);
  shared.claim.store(uint64_t{op_} << 32, std::memory_order_relaxed);
  shared.op.store(op_, std::memory_order_release);
  shared.op.notify_all();
}

void Team::Member::Wait() {
  const std::atomic<uint32_t>& op = team_.shared_->op;
  const uint32_t mine = op_++;
  // Others may be several ops ahead; only `mine` itself means that this one is not over.
  if (op.load(std::memory_order_acquire) != mine) return;
  const auto deadline = std::chrono::steady_clock::now() + team_.shared_->spin;
  do {
    for (int i = 0; i < 16; ++i) {
      _mm_pause();
      if (op.load(std::memory_order_acquire) != mine) return;
    }
  } while (std::chrono::steady_clock::now() < deadline);
  while (op.load(std::memory_order_acquire) == mine) op.wait(mine, std::memory_order_acquire);
}

}  // namespace thermocline
