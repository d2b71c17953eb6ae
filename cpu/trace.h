// What every thread did when, for `--trace`: a timeline in Chrome's trace format. Without a Tracer all this costs the
// question whether a pointer is null.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/model.h"

namespace thermocline {

inline constexpr int64_t kMaxTraceEvents = 1
                                           << 18;  // kept of one thread; others share as many. 12 MB, and 60 MB of text

// An op, as a trace shows it.
struct TraceLabel {
  std::string name;
  const char* category;     // "linear", "attention", "rows", or "step": the whole of it, done by all
  int layer;                // -1: outside the layers
  double bytes_per_us = 0;  // what the one who does it can read; 0: not known. Set by Attach
};

// One stretch of one thread's work on one op.
struct TraceEvent {
  int64_t begin_ns, end_ns;
  int64_t bytes;  // read from memory: weights, keys and values
  int64_t ops;    // 2 per multiply and add
  int32_t label;
  uint32_t step;
  int32_t rows;
  int32_t chunks;
};

// The newest events of one thread: written by that thread alone, read when nothing runs.
class TraceTrack {
 public:
  explicit TraceTrack(int64_t capacity);

  static int64_t Now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  // What this thread does next; `bytes` and `ops` are those of the whole op.
  void Begin(const TraceEvent& op) {
    op_ = op;
    part_ = parts_ = 1;
  }
  // Of what Begin said, the next Work is about part / parts.
  void SetPart(int64_t part, int64_t parts) {
    part_ = part;
    parts_ = parts;
  }
  // It did n_done of the op's n_chunks from begin_ns until now.
  void Work(int64_t begin_ns, int64_t n_done, int64_t n_chunks);

  int64_t n_dropped() const { return n_ > capacity_ ? n_ - capacity_ : 0; }
  int64_t n_kept() const { return n_ - n_dropped(); }
  const TraceEvent& event(int64_t i) const { return ring_[(n_dropped() + i) % capacity_]; }  // oldest first

 private:
  int64_t capacity_, n_ = 0;
  std::unique_ptr<TraceEvent[]> ring_;
  TraceEvent op_{};
  int64_t part_ = 1, parts_ = 1;
};

class Tracer {
 public:
  Tracer();
  // What the members of the next engine read together; predicted times come from it.
  void set_bandwidth(double gb_per_s) { bandwidth_ = gb_per_s; }
  // For an engine of so many members; several may follow each other, not run at once. Returns the number of the first
  // of `labels`, the others follow.
  int32_t Attach(int n_members, std::vector<TraceLabel> labels);

  TraceTrack& track(int member) { return *tracks_[member]; }
  TraceTrack& steps() { return steps_; }
  uint32_t NextStep() { return ++step_; }

  // The predicted time of an event is its bytes at the bandwidth of one member, an equal part of the whole. `write`
  // gets the text piece by piece and may throw.
  void Write(const std::function<void(std::string_view)>& write) const;

 private:
  void WriteTrack(const TraceTrack& track, int thread, const std::function<void(std::string_view)>& write) const;

  const int64_t begin_ns_ = TraceTrack::Now();
  double bandwidth_ = 0;
  uint32_t step_ = 0;
  std::vector<TraceLabel> labels_;
  std::vector<std::unique_ptr<TraceTrack>> tracks_;
  TraceTrack steps_;
};

}  // namespace thermocline
