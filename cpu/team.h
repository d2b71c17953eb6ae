// The thread team: created once, pinned to physical cores within the affinity mask and cgroup quota.
//
// Members run the same list of ops; work inside an op is claimed in chunks. An op is over when its chunks are done, not
// when all members have come: one that lost its time slice holds up nobody but the chunk it is in, and skips what the
// others did meanwhile. Whoever finishes the last chunk may run what is too small to share. A member that is late again
// and again is sent to rest, probed from time to time, and called back when its core is free; if it is the caller that
// is late, it takes the core of another member, who rests in its stead.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>

#include "cpu/trace.h"

namespace thermocline {

inline constexpr int kMaxThreads = 256;

class Team {
 public:
  // n_threads <= 0: one per physical core we may use. Throws Error above kMaxThreads, or where the system starts no
  // more threads. run_delay_ns: for how long the calling thread was ready and did not run, ever since it began; null:
  // what the kernel says.
  explicit Team(int n_threads, int64_t (*run_delay_ns)() = nullptr);
  ~Team();
  Team(const Team&) = delete;

  int size() const;

  // Runs fn(member) on the caller, which is member 0, and on each of the others, at most max_members in all, that come
  // before the caller is through: fn must get everything done whoever comes, and does with For. Returns when all who
  // came are done. fn must not throw. One Run at a time.
  class Member;
  template <typename Fn>
  void Run(const Fn& fn, int max_members = kMaxThreads) {
    RunErased([](const void* f, Member& member) { (*static_cast<const Fn*>(f))(member); }, &fn, max_members);
  }

  class Member {
   public:
    int index() const { return index_; }  // [0, team size); no two members of a Run share one

    // All members call For with the same arguments. Chunks [begin, end) of [0, n), at most `grain` long and starting at
    // multiples of it, go to whoever claims them: each member starts with a part of its own, which it takes in order,
    // and then helps the others. When all are done, `then()` runs on one member; after that For returns, on a late
    // member without having done anything. What the bodies and `then` wrote is visible by then.
    //
    // A late member reads shared variables later than the others: which ops follow must depend only on what does not
    // change during a Run, or changes once and ends it.
    template <typename Body, typename Then>
    void For(int64_t n, int64_t grain, const Body& body, const Then& then) {
      const int64_t n_chunks = n > 0 ? (n - 1) / grain + 1 : 1;  // an op without work still has its `then`
      int64_t n_done = 0;
      const int64_t begin_ns = track_ ? TraceTrack::Now() : 0;
      for (int i = 0; i < n_parts_; ++i) {
        const int part = part_ + i < n_parts_ ? part_ + i : part_ + i - n_parts_;
        const int64_t first = FirstOf(part, n_chunks), count = FirstOf(part + 1, n_chunks) - first;
        for (int64_t chunk; (chunk = Claim(part, count)) >= 0; ++n_done) {
          const int64_t begin = (first + chunk) * grain;
          if (begin < n) body(begin, n - begin < grain ? n : begin + grain);
        }
      }
      if (track_ && n_done > 0) track_->Work(begin_ns, n_done, n_chunks);
      if (n_done > 0 && Finish(n_done, n_chunks)) {
        then();
        Open();
      } else {
        Wait();
      }
    }
    template <typename Body>
    void For(int64_t n, int64_t grain, const Body& body) {
      For(n, grain, body, [] {});
    }

    // Of n chunks, the one that this member begins with.
    int64_t FirstChunk(int64_t n_chunks) const { return FirstOf(part_, n_chunks); }
    // What it will read first in an op to come: while it waits, it brings these bytes to its L2.
    void ReadAhead(std::span<const uint8_t> bytes) { ahead_ = bytes; }

    // Where what this member does in For is traced from now on; null: nowhere.
    void set_track(TraceTrack* track) { track_ = track; }
    // The next For is so much of the op that is traced.
    void TracePart(int64_t part, int64_t parts) {
      if (track_) track_->SetPart(part, parts);
    }

   private:
    friend class Team;
    Member(Team& team, int index, int rank, int n_members, uint32_t op);
    int64_t FirstOf(int part, int64_t n_chunks) const { return n_chunks * part / n_parts_; }
    int64_t Claim(int part, int64_t n_chunks);      // -1: none left in this part, or the op is over
    bool Finish(int64_t n_done, int64_t n_chunks);  // true: those were the last
    void Open();
    void Wait();
    Team& team_;
    int index_;
    TraceTrack* track_ = nullptr;
    int n_parts_, part_;  // where it starts to claim
    std::span<const uint8_t> ahead_;
    uint32_t op_;  // counts the calls of For; the team's counter may be ahead
  };

 private:
  void RunErased(void (*call)(const void*, Member&), const void* fn, int max_members);
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace thermocline
