// Who of a team is late again and again, and when to give it another try. No threads, no clocks: numbers in, verdicts
// out.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace thermocline {

class Lateness {
 public:
  explicit Lateness(int n_members) : members_(n_members) {}

  // A Run of wall_ns is over.
  void Ran(int64_t wall_ns) { window_ns_ += wall_ns; }
  // `member` was ready to run and did not for late_ns.
  void Add(int member, int64_t late_ns) { members_[member].late_ns += late_ns; }
  // Once the window is over: who should rest of the n_serving that serve; -1: nobody. Begins another window.
  bool WindowIsOver() const;
  int Judge(int n_serving);

  // `member` is sent to rest at now_ns.
  void Rest(int member, int64_t now_ns);
  bool ProbeIsDue(int member, int64_t now_ns) const { return now_ns >= members_[member].probe_ns; }
  // What a probe found; a member whose core was free serves again, the others are probed again later.
  void Probed(int member, bool free, int64_t now_ns);
  // Two members have swapped their cores: what is known of the one is now true of the other.
  void Swap(int a, int b) { std::swap(members_[a], members_[b]); }

 private:
  struct Record {
    int64_t late_ns = 0;  // in the window
    int strikes = 0;      // windows in a row in which it was late
    int64_t rest_ns = 0;  // from one probe to the next
    int64_t probe_ns = 0, back_ns = 0;
  };
  std::vector<Record> members_;
  int64_t window_ns_ = 0;
};

}  // namespace thermocline
