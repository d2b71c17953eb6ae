#include "cpu/lateness.h"

#include <doctest/doctest.h>

namespace thermocline {
namespace {

constexpr int64_t kMs = 1'000'000;

// One window of 25 ms in which two members were late for so long.
int Window(Lateness& lateness, int64_t caller_ms, int64_t other_ms) {
  CHECK_FALSE(lateness.WindowIsOver());
  for (int i = 0; i < 5; ++i) lateness.Ran(5 * kMs);
  REQUIRE(lateness.WindowIsOver());
  lateness.Add(0, caller_ms * kMs);
  lateness.Add(1, other_ms * kMs);
  return lateness.Judge(2);
}

TEST_CASE("who is late again and again is to rest, who had a hiccup is not") {
  Lateness lateness(2);
  CHECK(Window(lateness, 0, 0) == -1);
  CHECK(Window(lateness, 0, 20) == -1);
  CHECK(Window(lateness, 0, 1) == -1);  // a clean window between
  CHECK(Window(lateness, 0, 20) == -1);
  CHECK(Window(lateness, 0, 12) == 1);
}

TEST_CASE("of several that are late the worst one rests, be it the caller") {
  Lateness lateness(2);
  CHECK(Window(lateness, 20, 10) == -1);
  CHECK(Window(lateness, 20, 10) == 0);
}

TEST_CASE("the more members, the less of a late one is borne") {
  for (const int n : {2, 8}) {
    Lateness lateness(8);
    int late = -1;
    for (int window = 0; window < 2; ++window) {
      lateness.Ran(30 * kMs);
      lateness.Add(3, 4 * kMs);
      late = lateness.Judge(n);
    }
    CHECK(late == (n == 8 ? 3 : -1));
  }
}

TEST_CASE("who serves alone and has half of its core is late") {
  Lateness lateness(2);
  int late = -1;
  for (int window = 0; window < 2; ++window) {
    lateness.Ran(30 * kMs);
    lateness.Add(0, 14 * kMs);
    late = lateness.Judge(1);
  }
  CHECK(late == 0);
}

TEST_CASE("probes come ever more rarely while the core stays busy, soon again after a long good time") {
  Lateness lateness(2);
  int64_t now_ns = 1000 * kMs, last_ns = 0;
  lateness.Rest(1, now_ns);
  const auto wait_ns = [&] {
    int64_t ns = 0;
    while (!lateness.ProbeIsDue(1, now_ns + ns)) ns += kMs;
    return ns;
  };
  for (int i = 0; i < 10; ++i) {
    const int64_t ns = wait_ns();
    CHECK(ns > 10 * kMs);
    CHECK((ns >= 2 * last_ns || ns == 2000 * kMs));
    last_ns = ns;
    now_ns += ns;
    lateness.Probed(1, false, now_ns);
  }
  CHECK(last_ns == 2000 * kMs);

  lateness.Probed(1, true, now_ns);
  lateness.Rest(1, now_ns + 100 * kMs);  // back, and late at once
  now_ns += 100 * kMs;
  CHECK(wait_ns() == 2000 * kMs);
  lateness.Probed(1, true, now_ns);
  now_ns += 60'000 * kMs;
  lateness.Rest(1, now_ns);
  CHECK(wait_ns() < 100 * kMs);
}

TEST_CASE("what is known of a core goes with it") {
  Lateness lateness(2);
  lateness.Rest(0, 0);
  lateness.Swap(0, 1);
  CHECK_FALSE(lateness.ProbeIsDue(1, kMs));
  CHECK(lateness.ProbeIsDue(0, kMs));
}

}  // namespace
}  // namespace thermocline
