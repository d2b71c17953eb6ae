// The thread team: created once, pinned to physical cores within the affinity mask and cgroup quota.
//
// Every member runs the same list of ops; work inside an op is claimed in chunks, so a member that lost its time slice
// holds up nobody but the chunk it is in. Between ops stands one barrier, whose last arriver may run what is too small
// to share.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace thermocline {

class Team {
 public:
  // n_threads <= 0: one per physical core we may use. Throws Error above kMaxThreads.
  explicit Team(int n_threads);
  ~Team();
  Team(const Team&) = delete;

  int size() const;

  // Runs fn(member) once on each member (the caller is member 0) and returns when all are done. fn must not throw.
  class Member;
  template <typename Fn>
  void Run(const Fn& fn) {
    RunErased([](const void* f, Member& member) { (*static_cast<const Fn*>(f))(member); }, &fn);
  }

  class Member {
   public:
    int index() const { return index_; }   // [0, team size)

    // All members call For with the same arguments. Chunks [begin, end) of [0, n), at most `grain` long and starting at
    // multiples of it, go to whoever claims them; then a barrier; `then()` runs on one member before it opens.
    template <typename Body, typename Then>
    void For(int64_t n, int64_t grain, const Body& body, const Then& then) {
      for (int64_t begin; (begin = Claim(grain)) < n;) body(begin, begin + grain < n ? begin + grain : n);
      Barrier(then);
    }
    template <typename Body>
    void For(int64_t n, int64_t grain, const Body& body) {
      For(n, grain, body, [] {});
    }
    // `then()` runs on the last arriver; nobody passes before it is done. Its writes are visible to all.
    template <typename Then>
    void Barrier(const Then& then) {
      if (ArriveLast()) {
        then();
        Open();
      } else {
        Wait();
      }
    }

   private:
    friend class Team;
    Member(Team& team, int index);
    int64_t Claim(int64_t grain);   // from the counter of the current op
    bool ArriveLast();
    void Open();
    void Wait();
    Team& team_;
    int index_;
    uint32_t epoch_ = 0;
  };

 private:
  void RunErased(void (*call)(const void*, Member&), const void* fn);
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

inline constexpr int kMaxThreads = 256;

}  // namespace thermocline
