// Progress on standard error, for what takes longer than a second.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace thermocline {

// One line that is drawn over on a terminal, and a line now and then where standard error is none.
class Progress {
 public:
  // `what` is being done, counted in `unit`: "tokens", or "" for percent alone.
  Progress(std::string what, std::string unit);
  ~Progress();  // takes the line away
  Progress(const Progress&) = delete;

  void Update(int64_t done, int64_t total);

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_, unit_;
  Clock::time_point start_, next_;
  bool drawn_ = false;
  const bool terminal_;
};

}  // namespace thermocline
