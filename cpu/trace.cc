#include "cpu/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>

namespace thermocline {
namespace {

constexpr int64_t kMinTrackEvents = 1024;
constexpr int kStepThread = 1000;  // above every member: the timeline shows it last

}  // namespace

TraceTrack::TraceTrack(int64_t capacity)
    : capacity_(capacity), ring_(std::make_unique_for_overwrite<TraceEvent[]>(capacity)) {}

void TraceTrack::Work(int64_t begin_ns, int64_t n_done, int64_t n_chunks) {
  TraceEvent& event = ring_[n_++ % capacity_];
  event = op_;
  event.begin_ns = begin_ns;
  event.end_ns = Now();
  event.bytes = op_.bytes * part_ / parts_ * n_done / n_chunks;
  event.ops = static_cast<int64_t>(static_cast<double>(op_.ops * part_ / parts_) * static_cast<double>(n_done) /
                                   static_cast<double>(n_chunks));
  event.chunks = static_cast<int32_t>(n_done);
}

Tracer::Tracer() : steps_(kMaxTraceEvents / 4) {}

int32_t Tracer::Attach(int n_members, std::vector<TraceLabel> labels) {
  for (TraceLabel& label : labels)
    label.bytes_per_us = bandwidth_ * 1e3 / (std::strcmp(label.category, "step") == 0 ? 1 : n_members);
  const int64_t capacity = std::max(kMinTrackEvents, kMaxTraceEvents / n_members);
  while (static_cast<int>(tracks_.size()) < n_members) tracks_.push_back(std::make_unique<TraceTrack>(capacity));
  const auto first = static_cast<int32_t>(labels_.size());
  labels_.insert(labels_.end(), labels.begin(), labels.end());
  return first;
}

void Tracer::Write(const std::function<void(std::string_view)>& write) const {
  int64_t dropped = steps_.n_dropped();
  for (const auto& track : tracks_) dropped += track->n_dropped();
  write(fmt::format(
      "{{\"displayTimeUnit\": \"ns\",\n\"otherData\": {{\"version\": 1, \"read_bandwidth_GB_per_s\": {:.3f}, "
      "\"events_dropped\": {}}},\n\"traceEvents\": [\n",
      bandwidth_, dropped));
  for (int i = 0; i < static_cast<int>(tracks_.size()); ++i) WriteTrack(*tracks_[i], i, write);
  WriteTrack(steps_, kStepThread, write);
  write("{\"ph\": \"M\", \"pid\": 1, \"name\": \"process_name\", \"args\": {\"name\": \"thermocline\"}}\n]}\n");
}

void Tracer::WriteTrack(const TraceTrack& track, int thread, const std::function<void(std::string_view)>& write) const {
  const std::string name = thread == kStepThread ? "steps" : fmt::format("thread {}", thread);
  std::string text = fmt::format(
      "{{\"ph\": \"M\", \"pid\": 1, \"tid\": {}, \"name\": \"thread_name\", \"args\": {{\"name\": \"{}\"}}}},\n",
      thread, name);
  const auto out = std::back_inserter(text);
  for (int64_t i = 0; i < track.n_kept(); ++i) {
    const TraceEvent& event = track.event(i);
    const TraceLabel& label = labels_[event.label];
    fmt::format_to(
        out,
        "{{\"ph\": \"X\", \"pid\": 1, \"tid\": {}, \"name\": \"{}\", \"cat\": \"{}\", \"ts\": {:.3f}, \"dur\": "
        "{:.3f}, \"args\": {{\"step\": {}, \"rows\": {}",
        thread, label.name, label.category, static_cast<double>(event.begin_ns - begin_ns_) * 1e-3,
        static_cast<double>(event.end_ns - event.begin_ns) * 1e-3, event.step, event.rows);
    if (label.layer >= 0) fmt::format_to(out, ", \"layer\": {}", label.layer);
    fmt::format_to(out, ", \"bytes\": {}, \"ops\": {}", event.bytes, event.ops);
    if (event.bytes > 0 && label.bytes_per_us > 0)
      fmt::format_to(out, ", \"predicted_us\": {:.3f}", static_cast<double>(event.bytes) / label.bytes_per_us);
    text += "}},\n";
    if (text.size() > 1 << 16) {
      write(text);
      text.clear();
    }
  }
  write(text);
}

}  // namespace thermocline
