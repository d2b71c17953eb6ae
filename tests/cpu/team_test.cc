#include "cpu/team.h"

#include <doctest/doctest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "cpu/topology.h"
#include "models/error.h"

namespace thermocline {
namespace {

constexpr int kSizes[] = {1, 2, 3, 4, 5, 8};

// Waits until `flag` is set, but not for ever.
void Await(const std::atomic<bool>& flag) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!flag && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
}

// For what can be done only when all have come; false: they did not within a minute.
bool MeetAll(Team& team, int n, const std::function<void(int index)>& work, int max_members = kMaxThreads) {
  std::atomic<int> n_come{0};
  std::atomic<bool> all_come{false};
  team.Run(
      [&](Team::Member& member) {
        work(member.index());
        if (++n_come == n) all_come = true;
        Await(all_come);
      },
      max_members);
  return n_come == n;
}

TEST_CASE("every member runs once, with an index of its own") {
  for (int n : kSizes) {
    CAPTURE(n);
    Team team(n);
    CHECK(team.size() == n);
    std::vector<int> runs(n, 0);
    CHECK(MeetAll(team, n, [&](int index) { ++runs[index]; }));
    CHECK(runs == std::vector<int>(n, 1));
  }
}

TEST_CASE("a Run may be for fewer members, and the next for all again") {
  Team team(4);
  for (int round = 0; round < 20; ++round)
    for (int n : {1, 4, 2, 3}) {
      CAPTURE(n);
      std::atomic<int> n_runs{0};
      CHECK(MeetAll(
          team, n, [&](int) { ++n_runs; }, n));
      CHECK(n_runs == n);
    }
}

TEST_CASE("nobody enters a Run that is over, however short") {
  for (int n : {2, 4}) {
    Team team(n);
    std::atomic<int> n_bad{0};
    std::atomic<int64_t> n_chunks{0};
    for (int run = 0; run < 5000; ++run) {
      bool over = false;  // of this Run alone: who comes too late reads what is no more
      std::atomic<uint32_t> seen{0};
      team.Run([&](Team::Member& member) {
        if (over || (seen.fetch_or(1u << member.index()) >> member.index() & 1)) ++n_bad;
        if (run % 3 == 0) member.For(4, 1, [&](int64_t, int64_t) { ++n_chunks; });
      });
      over = true;
      if (!(seen & 1)) ++n_bad;
    }
    CHECK(n_bad == 0);
    CHECK(n_chunks == 4 * 1667);
  }
}

// Each op reads what the one before wrote, so an op that starts too early, or a chunk lost by a member sent to rest,
// ends in a wrong number.
TEST_CASE("a busy neighbour on any core changes nothing") {
  const Topology topology = DetectTopology();
  Team team(0);
  for (size_t i = 0; i < topology.team_cpus.size() && i < 2; ++i) {
    std::atomic<bool> stop{false};
    std::thread neighbour([&] {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(topology.team_cpus[i], &set);
      sched_setaffinity(0, sizeof set, &set);
      while (!stop) {
      }
    });
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
    int64_t n_bad = 0;
    while (std::chrono::steady_clock::now() < deadline) {
      std::vector<int64_t> a(64), b(64);
      team.Run([&](Team::Member& member) {
        for (int op = 0; op < 100; ++op) {
          const std::vector<int64_t>& from = op % 2 == 0 ? a : b;
          std::vector<int64_t>& to = op % 2 == 0 ? b : a;
          member.For(64, 4, [&](int64_t begin, int64_t end) {
            for (int64_t k = begin; k < end; ++k) to[k] = from[(k + 1) % 64] + 1;
          });
        }
      });
      n_bad += a != std::vector<int64_t>(64, 100);
    }
    stop = true;
    neighbour.join();
    CHECK(n_bad == 0);
  }
}

// For DelayOfHelpers: whether something else runs wherever a helper would.
std::atomic<bool> helpers_are_late{false};
std::thread::id caller;
int64_t DelayOfHelpers() {
  static std::atomic<int64_t> last_ns{0};
  if (std::this_thread::get_id() == caller) return 0;
  if (helpers_are_late) last_ns = std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
  return last_ns;
}

TEST_CASE("who is late again and again rests, and comes back when its core is free") {
  if (DetectTopology().DefaultThreads() < 2) return;  // members outnumber the CPUs: nobody is judged
  caller = std::this_thread::get_id();
  Team team(2, DelayOfHelpers);
  // Long enough for a helper that sleeps to come; afterwards it sleeps again.
  const auto comes = [&] {
    bool both = false;
    std::atomic<bool> come{false};
    team.Run([&](Team::Member& member) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
      if (member.index() == 1) come = true;
      while (member.index() == 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    });
    both = come;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return both;
  };
  for (int round = 0; round < 2; ++round) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    const auto in_time = [&] { return std::chrono::steady_clock::now() < deadline; };
    helpers_are_late = true;
    int n_alone = 0;  // Runs in a row; probes go on meanwhile, and find it late
    while (n_alone < 40 && in_time()) n_alone = comes() ? 0 : n_alone + 1;
    CHECK(n_alone == 40);
    helpers_are_late = false;
    bool back = false;
    while (!back && in_time()) back = comes();
    CHECK(back);
  }
}

TEST_CASE("the default size is at least one and at most the cores we may use") {
  const Team team(0);
  CHECK(team.size() >= 1);
  CHECK(team.size() == std::min(kMaxThreads, DetectTopology().DefaultThreads()));
}

TEST_CASE("too many threads are an error that says how many are possible") {
  std::string message;
  try {
    Team team(kMaxThreads + 1);
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message.find("257") != std::string::npos);
  CHECK(message.find("256") != std::string::npos);
}

TEST_CASE("For runs every chunk exactly once, cut at multiples of the grain, then `then` once") {
  for (int n_members : kSizes) {
    Team team(n_members);
    for (int64_t n : {0, 1, 2, 7, 64, 1000})
      for (int64_t grain : {1, 3, 64, 2000}) {
        CAPTURE(n_members);
        CAPTURE(n);
        CAPTURE(grain);
        std::vector<int> touched(n, 0);  // chunks do not overlap, so no atomics: a race would be a bug of the team
        std::atomic<int> n_bad{0};
        int n_then = 0;
        bool all_touched = false;
        team.Run([&](Team::Member& member) {
          member.For(
              n, grain,
              [&](int64_t begin, int64_t end) {
                if (begin % grain != 0 || begin >= end || end - begin > grain || end > n) ++n_bad;
                for (int64_t i = begin; i < end; ++i) ++touched[i];
              },
              [&] {
                ++n_then;
                all_touched = std::accumulate(touched.begin(), touched.end(), int64_t{0}) == n;
              });
          if (n_then != 1) ++n_bad;  // nobody passes before it is done
        });
        CHECK(n_bad == 0);
        CHECK(n_then == 1);
        CHECK(all_touched);
        CHECK(touched == std::vector<int>(n, 1));
      }
  }
}

// Each op reads what the one before wrote elsewhere, so a chunk that starts too early reads a wrong number.
void CheckPipeline(int n_members, int n_ops) {
  CAPTURE(n_members);
  constexpr int64_t kWidth = 37;
  Team team(n_members);
  std::vector<int64_t> a(kWidth), b(kWidth);
  int64_t n_then = 0;
  for (int run = 0; run < 3; ++run) {  // what one run leaves behind must not disturb the next
    std::fill(a.begin(), a.end(), 0);
    n_then = 0;
    team.Run([&](Team::Member& member) {
      for (int op = 0; op < n_ops; ++op) {
        const std::vector<int64_t>& from = op % 2 == 0 ? a : b;
        std::vector<int64_t>& to = op % 2 == 0 ? b : a;
        member.For(
            kWidth, 5,
            [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) to[i] = from[(i + 1) % kWidth] + 1;
            },
            [&] { ++n_then; });
      }
    });
    CHECK(n_then == n_ops);
    CHECK((n_ops % 2 == 0 ? a : b) == std::vector<int64_t>(kWidth, n_ops));
  }
}

TEST_CASE("thousands of ops, as many members as CPUs and more") {
  for (int n : {1, 2}) CheckPipeline(n, 20000);
  for (int n : {3, 4, 8}) CheckPipeline(n, 2000);
}

TEST_CASE("members far beyond the CPUs") { CheckPipeline(32, 100); }

TEST_CASE("a late member holds up nobody: the others finish every op without it") {
  Team team(3);
  std::atomic<bool> finished{false};
  std::atomic<int> by_late{0}, n_chunks{0}, n_come{0};
  bool in_time = false;
  team.Run([&](Team::Member& member) {
    ++n_come;
    if (member.index() == 1) {  // comes when everything is over
      Await(finished);
      in_time = finished;
    } else {
      while (n_come < 3) std::this_thread::yield();
    }
    for (int op = 0; op < 100; ++op)
      member.For(10, 1, [&](int64_t, int64_t) {
        ++n_chunks;
        if (member.index() == 1) ++by_late;
      });
    finished = true;
  });
  CHECK(in_time);
  CHECK(n_chunks == 1000);
  CHECK(by_late == 0);
}

TEST_CASE("a member asleep for long wakes up again") {
  Team team(2);
  std::vector<int> order;
  team.Run([&](Team::Member& member) {
    for (int i = 0; i < 3; ++i)
      member.For(1, 1, [&](int64_t, int64_t) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));  // far beyond spinning
        order.push_back(i);
      });
  });
  CHECK(order == std::vector<int>{0, 1, 2});
}

TEST_CASE("members that leave early, as after a cancellation, leave a team that works") {
  Team team(4);
  for (int round = 0; round < 200; ++round) {
    std::atomic<bool> stopped{false};
    std::atomic<int> n_chunks{0};
    team.Run([&](Team::Member& member) {
      for (int op = 0; op < 50 && !stopped; ++op)
        member.For(
            8, 1, [&](int64_t, int64_t) { ++n_chunks; },
            [&, op] {
              if (op == round % 50) stopped = true;
            });
    });
    CHECK(n_chunks == 8 * (round % 50 + 1));
  }
}

TEST_CASE("two teams take turns on the same threads") {
  Team small(2), large(5);
  for (int i = 0; i < 50; ++i)
    for (Team* team : {&small, &large}) {
      std::atomic<int64_t> sum{0};
      team->Run([&](Team::Member& member) {
        member.For(100, 7, [&](int64_t begin, int64_t end) { sum += (begin + end - 1) * (end - begin) / 2; });
      });
      CHECK(sum == 4950);
    }
}

TEST_CASE("the caller keeps its affinity, and members of a team as large as the machine do not share a CPU") {
  cpu_set_t before, after;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  const Topology topology = DetectTopology();
  const int n = static_cast<int>(topology.team_cpus.size());
  if (n < kMaxThreads) {
    Team team(n);
    std::vector<cpu_set_t> sets(n);
    REQUIRE(MeetAll(team, n, [&](int index) {
      CPU_ZERO(&sets[index]);
      sched_getaffinity(0, sizeof(cpu_set_t), &sets[index]);
    }));
    for (int i = 0; i < n; ++i) {
      if (n > 1) CHECK(CPU_COUNT(&sets[i]) == 1);
      CHECK(CPU_ISSET(topology.team_cpus[i], &sets[i]));
    }
  }
  Team more(n + 1);  // more members than cores: anywhere
  std::vector<int> counts(n + 1);
  REQUIRE(MeetAll(more, n + 1, [&](int index) {
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    counts[index] = CPU_COUNT(&set);
  }));
  CHECK(counts == std::vector<int>(n + 1, CPU_COUNT(&before)));
  REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));
}

}  // namespace
}  // namespace thermocline
