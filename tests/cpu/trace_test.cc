#include "cpu/trace.h"

#include <doctest/doctest.h>

namespace thermocline {
namespace {

TEST_CASE("a track keeps its newest events, oldest first") {
  TraceTrack track(4);
  for (uint32_t step = 0; step < 3; ++step) {
    track.Begin({.begin_ns = 0, .end_ns = 0, .bytes = 0, .ops = 0, .label = 0, .step = step, .rows = 1, .chunks = 0});
    track.Work(step, 1, 1);
  }
  CHECK(track.n_kept() == 3);
  CHECK(track.n_dropped() == 0);
  CHECK(track.event(0).step == 0);
  for (uint32_t step = 3; step < 10; ++step) {
    track.Begin({.begin_ns = 0, .end_ns = 0, .bytes = 0, .ops = 0, .label = 0, .step = step, .rows = 1, .chunks = 0});
    track.Work(step, 1, 1);
  }
  CHECK(track.n_kept() == 4);
  CHECK(track.n_dropped() == 6);
  for (uint32_t i = 0; i < 4; ++i) CHECK(track.event(i).step == 6 + i);
}

TEST_CASE("work takes its share of the op") {
  TraceTrack track(4);
  track.Begin({.begin_ns = 0, .end_ns = 0, .bytes = 1000, .ops = 2000, .label = 3, .step = 1, .rows = 1, .chunks = 0});
  track.Work(5, 3, 4);
  CHECK(track.event(0).bytes == 750);
  CHECK(track.event(0).ops == 1500);
  CHECK(track.event(0).label == 3);
  CHECK(track.event(0).begin_ns == 5);
  CHECK(track.event(0).end_ns >= 5);
  track.SetPart(1, 2);
  track.Work(5, 1, 1);
  CHECK(track.event(1).bytes == 500);
  track.SetPart(0, 2);
  track.Work(5, 1, 1);
  CHECK(track.event(2).bytes == 0);
}

TEST_CASE("a member's predicted time is its part of the bandwidth, a step's all of it") {
  Tracer tracer;
  tracer.set_bandwidth(8);  // GB/s
  const int32_t first = tracer.Attach(2, {{"step", "step", -1}, {"ffn_down", "linear", 7}});
  const TraceEvent event{
      .begin_ns = 0, .end_ns = 0, .bytes = 16000, .ops = 1, .label = first, .step = 1, .rows = 1, .chunks = 0};
  tracer.steps().Begin(event);
  tracer.steps().Work(TraceTrack::Now(), 1, 1);
  TraceEvent part = event;
  part.label = first + 1;
  tracer.track(1).Begin(part);
  tracer.track(1).Work(TraceTrack::Now(), 1, 1);
  std::string text;
  tracer.Write([&](std::string_view more) { text += more; });
  CHECK(text.find("\"layer\": 7, \"bytes\": 16000, \"ops\": 1, \"predicted_us\": 4.000}}") != std::string::npos);
  CHECK(text.find("\"bytes\": 16000, \"ops\": 1, \"predicted_us\": 2.000}}") != std::string::npos);
}

}  // namespace
}  // namespace thermocline
