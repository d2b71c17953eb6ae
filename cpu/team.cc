#include "cpu/team.h"

#include <emmintrin.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/lateness.h"
#include "cpu/topology.h"
#include "models/check.h"
#include "models/error.h"

namespace thermocline {
namespace {

// How long a waiting member spins before it sleeps. A sleeper runs again 30 to 50 us after it was woken (measured on a
// Xeon guest), so spinning for somewhat longer at most triples the price of a wait; between ops the wait is a few us.
constexpr int64_t kSpinNs = 80'000;
// Where members outnumber the CPUs, whoever spins holds up the one it waits for.
constexpr int64_t kSpinOversubscribedNs = 1'000;

// A probe is longer than several time slices (4 ms), so that a neighbour shows: one that takes turns with us makes the
// probe late for half of the time. One slice may go by before a member that has slept runs at all.
constexpr int64_t kProbeNs = 24'000'000;
constexpr int64_t kProbeLateNs = kProbeNs / 4;

// Parts of an op that members begin with. More would make everybody look at too many of them before it waits.
constexpr int kMaxParts = 8;

constexpr size_t kLine = 64;
constexpr size_t kReadAheadBytes = 8 * kLine;  // between two looks at whether the wait is over

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Returns once `word` is no longer `value`.
void WaitWhile(const std::atomic<uint32_t>& word, uint32_t value, int64_t spin_ns) {
  if (word.load(std::memory_order_acquire) != value) return;
  const int64_t deadline_ns = NowNs() + spin_ns;
  do {
    for (int i = 0; i < 16; ++i) {
      _mm_pause();
      if (word.load(std::memory_order_acquire) != value) return;
    }
  } while (NowNs() < deadline_ns);
  while (word.load(std::memory_order_acquire) == value) word.wait(value, std::memory_order_acquire);
}

// For how long the calling thread was ready to run, and something else ran in its place, ever since it began: the
// second number of its schedstat (Linux Documentation/scheduler/sched-stats.rst). 0 where the kernel does not count it:
// then nobody is ever late.
int64_t RunDelayNs() {
  struct File {
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    ~File() {
      if (fd >= 0) close(fd);
    }
  };
  thread_local const File file;
  char text[64];
  const ssize_t n = file.fd >= 0 ? pread(file.fd, text, sizeof text - 1, 0) : -1;
  if (n <= 0) return 0;
  text[n] = 0;
  char* end = nullptr;
  std::strtoll(text, &end, 10);
  return std::strtoll(end, nullptr, 10);
}

// What a helper is told to do.
enum Order : uint32_t { kRest, kServe, kProbe, kQuit };
enum class Verdict { kNone, kFree, kBusy };

// The gate of a Run: how many helpers are inside, whether others may enter, and the number of the Run above.
constexpr uint32_t kInside = 0x3ff, kOpen = 0x400, kNextRun = 0x800;
static_assert(kMaxThreads <= kInside);

}  // namespace

struct Team::Shared {
  // Members but the caller. What is not atomic is written between Runs, and read by those who entered one.
  struct alignas(kLine) Helper {
    std::atomic<uint32_t> order{kRest};
    std::atomic<int64_t> late_ns{0};
    std::atomic<Verdict> verdict{Verdict::kNone};
    std::atomic<int> place{0};  // of binding
    int rank = 0;               // among those that serve
    bool evicted = false;       // the caller's own note
    std::thread thread;
  };

  int size;
  int64_t spin_ns;
  int64_t (*run_delay_ns)() = RunDelayNs;
  bool judges = false;             // whether late members are sent to rest
  std::vector<cpu_set_t> binding;  // (size): where each member may run; empty: anywhere
  std::vector<Helper> helpers;     // (size); [0] stands for the caller and has no thread
  Lateness lateness;
  int n_serving = 1;  // in the last Run

  struct {
    void (*call)(const void*, Member&);
    const void* fn;
    int n_members;
    uint32_t first_op;
  } job{};

  alignas(kLine) std::atomic<uint32_t> gate{0};
  // Per part, the number of the op in the upper half, its next unclaimed chunk in the lower: so a late member cannot
  // claim from an op it does not know yet.
  struct alignas(kLine) Part {
    std::atomic<uint64_t> claim{0};
  };
  Part parts[kMaxParts];
  alignas(kLine) std::atomic<int64_t> done{0};  // chunks of the current op
  alignas(kLine) std::atomic<uint32_t> op{0};   // what waiters wait on

  explicit Shared(int n) : size(n), helpers(n), lateness(n) {}
  void Bind(const Topology& topology);
  void Stop();
  void Tell(int index, Order order);
  void Help(Team& team, int index);
  bool Enter(uint32_t now);
  void Leave();
  void OpenGate();
  void CloseGate();
  int Muster(int max_members);
  void Review();
  void Evict(int member, int64_t now_ns);
};

// One CPU for each member where the team takes all cores. A smaller team may use any of the cores (the fast ones, if
// they suffice), one CPU of each: were it pinned, two processes of a few threads would sit on the same cores.
void Team::Shared::Bind(const Topology& topology) {
  const int n_cpus = static_cast<int>(topology.team_cpus.size());
  if (size > n_cpus || (size == 1 && topology.fast_cores == n_cpus)) return;
  const int n_shared = size <= topology.fast_cores ? topology.fast_cores : n_cpus;
  for (int member = 0; member < size; ++member) {
    helpers[member].place.store(member, std::memory_order_relaxed);
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

// Puts the caller of Run where member 0 belongs, and back where it was. An affinity that cannot be had (the mask shrank
// since) costs speed only, so failures are ignored.
class CallerBinding {
 public:
  explicit CallerBinding(const cpu_set_t* set)
      : restore_(set != nullptr && sched_getaffinity(0, sizeof original_, &original_) == 0) {
    if (restore_) sched_setaffinity(0, sizeof(cpu_set_t), set);
  }
  ~CallerBinding() {
    if (restore_) sched_setaffinity(0, sizeof original_, &original_);
  }
  CallerBinding(const CallerBinding&) = delete;
  CallerBinding& operator=(const CallerBinding&) = delete;

 private:
  cpu_set_t original_;
  bool restore_;
};

int TeamSize(int n_threads, const Topology& topology) {
  if (n_threads > kMaxThreads) throw Error("{} threads asked for; at most {} are possible", n_threads, kMaxThreads);
  return n_threads > 0 ? n_threads : std::min(topology.DefaultThreads(), kMaxThreads);
}

}  // namespace

Team::Team(int n_threads, int64_t (*run_delay_ns)()) {
  const Topology topology = DetectTopology();
  shared_ = std::make_unique<Shared>(TeamSize(n_threads, topology));
  if (run_delay_ns != nullptr) shared_->run_delay_ns = run_delay_ns;
  const double cpus = std::min(static_cast<double>(topology.affinity_cpus), topology.cpu_quota);
  const bool oversubscribed = shared_->size > cpus;
  shared_->spin_ns = oversubscribed ? kSpinOversubscribedNs : kSpinNs;
  shared_->judges = !oversubscribed;  // else members are late because of each other
  shared_->Bind(topology);
  try {
    for (int i = 1; i < shared_->size; ++i)
      shared_->helpers[i].thread = std::thread([this, i] { shared_->Help(*this, i); });
  } catch (const std::system_error& error) {
    shared_->Stop();
    throw Error("{} threads cannot be started ({}); ask for fewer with -t", shared_->size, error.what());
  }
}

Team::~Team() { shared_->Stop(); }

int Team::size() const { return shared_->size; }

void Team::Shared::Stop() {
  for (int i = 1; i < size; ++i) Tell(i, kQuit);
  for (Helper& helper : helpers)
    if (helper.thread.joinable()) helper.thread.join();
}

// Between Runs. A helper waits on its order or on the gate, and must be woken from either: the caller may run alone for
// long, and then no gate opens.
void Team::Shared::Tell(int index, Order order) {
  helpers[index].order.store(order, std::memory_order_release);
  helpers[index].order.notify_all();
  gate.fetch_add(kNextRun, std::memory_order_release);
  gate.notify_all();
}

// The life of a helper. An order given between Runs is known to whoever enters the next one.
void Team::Shared::Help(Team& team, int index) {
  Helper& me = helpers[index];
  int place = -1;
  int64_t delay_ns = 0;
  uint32_t last_run = 0;
  for (;;) {
    // The gate before the order: whoever sees a new gate also sees the order given before it moved.
    const uint32_t now = gate.load(std::memory_order_acquire);
    const uint32_t order = me.order.load(std::memory_order_acquire);
    if (order == kQuit) return;
    if (const int mine = me.place.load(std::memory_order_relaxed); mine != place && !binding.empty()) {
      place = mine;
      sched_setaffinity(0, sizeof(cpu_set_t), &binding[place]);
    }
    if (order == kRest) {
      delay_ns = run_delay_ns();  // what waking up takes counts
      me.order.wait(kRest, std::memory_order_acquire);
    } else if (order == kProbe) {
      for (const int64_t deadline_ns = NowNs() + kProbeNs; NowNs() < deadline_ns;) _mm_pause();
      const bool free = run_delay_ns() - delay_ns < kProbeLateNs;
      me.verdict.store(free ? Verdict::kFree : Verdict::kBusy, std::memory_order_relaxed);
      uint32_t probing = kProbe;
      me.order.compare_exchange_strong(probing, kRest, std::memory_order_release, std::memory_order_relaxed);
    } else if (now / kNextRun == last_run || (now & kOpen) == 0) {
      WaitWhile(gate, now, spin_ns);
    } else if (Enter(now)) {
      last_run = now / kNextRun;
      if (me.order.load(std::memory_order_relaxed) == kServe) {
        Member member(team, index, me.rank, job.n_members, job.first_op);
        job.call(job.fn, member);
        const int64_t before_ns = std::exchange(delay_ns, run_delay_ns());
        me.late_ns.store(me.late_ns.load(std::memory_order_relaxed) + delay_ns - before_ns, std::memory_order_relaxed);
      }
      Leave();
    }
  }
}

bool Team::Shared::Enter(uint32_t now) {
  return gate.compare_exchange_strong(now, now + 1, std::memory_order_acquire, std::memory_order_relaxed);
}

void Team::Shared::Leave() {
  const uint32_t now = gate.fetch_sub(1, std::memory_order_release) - 1;
  if ((now & (kOpen | kInside)) == 0) gate.notify_all();
}

void Team::Shared::OpenGate() {
  const uint32_t run = gate.load(std::memory_order_relaxed) / kNextRun + 1;
  gate.store(run * kNextRun | kOpen, std::memory_order_release);
  gate.notify_all();
}

void Team::Shared::CloseGate() {
  uint32_t now = gate.fetch_and(~kOpen, std::memory_order_acquire) & ~kOpen;
  for (; now & kInside; now = gate.load(std::memory_order_acquire)) WaitWhile(gate, now, spin_ns);
}

// Says who serves in the next Run, and returns how many do, the caller among them.
int Team::Shared::Muster(int max_members) {
  int n_serving = 1;
  for (int i = 1; i < size; ++i) {
    Helper& helper = helpers[i];
    const bool serves = !helper.evicted && n_serving < max_members;
    if (serves) helper.rank = n_serving++;
    const bool served = helper.order.load(std::memory_order_relaxed) == kServe;
    if (serves != served) Tell(i, serves ? kServe : kRest);
  }
  return n_serving;
}

// Between Runs: probes those who rest, and sends to rest who is late again and again.
void Team::Shared::Review() {
  const int64_t now_ns = NowNs();
  for (int i = 1; i < size; ++i) {
    Helper& helper = helpers[i];
    if (!helper.evicted || helper.order.load(std::memory_order_acquire) != kRest) continue;
    const Verdict verdict = helper.verdict.exchange(Verdict::kNone, std::memory_order_relaxed);
    if (verdict != Verdict::kNone) {
      helper.evicted = verdict == Verdict::kBusy;
      lateness.Probed(i, !helper.evicted, now_ns);
    } else if (lateness.ProbeIsDue(i, now_ns)) {
      Tell(i, kProbe);
    }
  }
  if (!lateness.WindowIsOver()) return;
  for (int i = 0; i < size; ++i) lateness.Add(i, helpers[i].late_ns.exchange(0, std::memory_order_relaxed));
  const int late = lateness.Judge(n_serving);
  if (late >= 0) Evict(late, now_ns);
}

// The caller cannot rest: it takes another's place, who rests in its stead. Where all others rest already, they are
// asked at once whether their cores are free again.
void Team::Shared::Evict(int member, int64_t now_ns) {
  const auto evictable = [](const Helper& helper) { return helper.thread.joinable() && !helper.evicted; };
  if (member == 0) {
    const auto other = std::find_if(helpers.begin(), helpers.end(), evictable);
    if (other == helpers.end()) {
      for (int i = 1; i < size; ++i)
        if (helpers[i].order.load(std::memory_order_acquire) == kRest) Tell(i, kProbe);
      return;
    }
    member = static_cast<int>(other - helpers.begin());
    const int place = helpers[0].place.load(std::memory_order_relaxed);
    helpers[0].place.store(other->place.exchange(place, std::memory_order_relaxed), std::memory_order_relaxed);
    lateness.Swap(0, member);
  }
  helpers[member].evicted = true;
  lateness.Rest(member, now_ns);
  Tell(member, kRest);
}

void Team::RunErased(void (*call)(const void*, Member&), const void* fn, int max_members) {
  Shared& shared = *shared_;
  if (shared.judges) shared.Review();
  const int n_members = shared.n_serving = shared.Muster(max_members);
  const int64_t start_ns = NowNs(), delay_ns = shared.run_delay_ns();
  Shared::Helper& me = shared.helpers[0];
  const CallerBinding binding(shared.binding.empty() ? nullptr : &shared.binding[me.place]);
  const uint32_t first_op = shared.op.load(std::memory_order_relaxed);
  for (Shared::Part& part : shared.parts) part.claim.store(uint64_t{first_op} << 32, std::memory_order_relaxed);
  shared.job = {call, fn, n_members, first_op};
  if (n_members > 1) shared.OpenGate();
  Member member(*this, 0, 0, n_members, first_op);
  call(fn, member);
  if (n_members > 1) shared.CloseGate();
  me.late_ns.fetch_add(shared.run_delay_ns() - delay_ns, std::memory_order_relaxed);
  shared.lateness.Ran(NowNs() - start_ns);
}

Team::Member::Member(Team& team, int index, int rank, int n_members, uint32_t op)
    : team_(team),
      index_(index),
      n_parts_(std::min(n_members, kMaxParts)),
      part_(rank * n_parts_ / n_members),
      op_(op) {}

int64_t Team::Member::Claim(int part, int64_t n_chunks) {
  CHECK(n_chunks <= UINT32_MAX);
  std::atomic<uint64_t>& claim = team_.shared_->parts[part].claim;
  uint64_t current = claim.load(std::memory_order_relaxed);
  int64_t next;
  do {
    const auto ahead = static_cast<int32_t>(static_cast<uint32_t>(current >> 32) - op_);
    next =
        ahead < 0 ? 0 : static_cast<int64_t>(current & UINT32_MAX);  // behind: nobody has claimed here in this op yet
    if (ahead > 0 || next >= n_chunks) return -1;
  } while (!claim.compare_exchange_weak(current, uint64_t{op_} << 32 | (next + 1), std::memory_order_relaxed));
  return next;
}

bool Team::Member::Finish(int64_t n_done, int64_t n_chunks) {
  return team_.shared_->done.fetch_add(n_done, std::memory_order_acq_rel) + n_done == n_chunks;
}

void Team::Member::Open() {
  Shared& shared = *team_.shared_;
  shared.done.store(0, std::memory_order_relaxed);
  shared.op.store(++op_, std::memory_order_release);
  shared.op.notify_all();
}

// Others may be several ops ahead; only the very number of this op means that it is not over.
void Team::Member::Wait() {
  const std::atomic<uint32_t>& op = team_.shared_->op;
  while (!ahead_.empty() && op.load(std::memory_order_acquire) == op_) {
    const auto now = ahead_.first(std::min(ahead_.size(), kReadAheadBytes));
    for (size_t i = 0; i < now.size(); i += kLine) _mm_prefetch(&now[i], _MM_HINT_T1);
    ahead_ = ahead_.subspan(now.size());
  }
  WaitWhile(op, op_++, team_.shared_->spin_ns);
}

}  // namespace thermocline
