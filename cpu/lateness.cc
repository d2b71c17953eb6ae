#include "cpu/lateness.h"

#include <algorithm>

namespace thermocline {
namespace {

// Several time slices of a busy neighbour (4 ms on Linux with 250 Hz), few steps of a large model.
constexpr int64_t kWindowNs = 20'000'000;
// One late window may be a hiccup.
constexpr int kStrikes = 2;
// A neighbour that stays costs a probe, and perhaps a slice, now and then: first soon, later hardly ever.
constexpr int64_t kFirstRestNs = 50'000'000, kLongestRestNs = 2'000'000'000;
// Who serves for so long after a rest has a clean record.
constexpr int64_t kForgivenNs = 5'000'000'000;

}  // namespace

bool Lateness::WindowIsOver() const { return window_ns_ >= kWindowNs; }

// Of n members one does 1/n of the work; while it is late, the others soon wait for the chunk it holds. So it costs
// more than it brings when it is late for 1/n of the time. Half of that, because others wait even when it is back: it
// comes to ops that it could have begun with the rest. Who serves alone beside one busy process is late for just half
// of the time, and is to look for another core like one of two.
int Lateness::Judge(int n_serving) {
  const int64_t too_late_ns = window_ns_ / (2 * std::max(n_serving, 2));
  window_ns_ = 0;
  int worst = -1;
  for (int i = 0; i < static_cast<int>(members_.size()); ++i) {
    Record& record = members_[i];
    record.strikes = record.late_ns > too_late_ns ? record.strikes + 1 : 0;
    if (record.strikes >= kStrikes && (worst < 0 || record.late_ns > members_[worst].late_ns)) worst = i;
  }
  for (Record& record : members_) record.late_ns = 0;
  return worst;
}

void Lateness::Rest(int member, int64_t now_ns) {
  Record& record = members_[member];
  const bool again = record.rest_ns > 0 && now_ns - record.back_ns < kForgivenNs;
  record.rest_ns = again ? std::min(2 * record.rest_ns, kLongestRestNs) : kFirstRestNs;
  record.probe_ns = now_ns + record.rest_ns;
  record.strikes = 0;
}

void Lateness::Probed(int member, bool free, int64_t now_ns) {
  Record& record = members_[member];
  record.late_ns = 0;
  if (free) {
    record.back_ns = now_ns;
  } else {
    record.rest_ns = std::min(2 * record.rest_ns, kLongestRestNs);
    record.probe_ns = now_ns + record.rest_ns;
  }
}

}  // namespace thermocline
