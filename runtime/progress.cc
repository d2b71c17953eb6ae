#include "runtime/progress.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr std::chrono::milliseconds kFirst{1000};      // what is done by then needs no progress
constexpr std::chrono::milliseconds kOnTerminal{200};  // between two updates
constexpr std::chrono::milliseconds kElsewhere{10'000};

std::string Duration(double seconds) {
  const auto s = static_cast<int64_t>(std::ceil(seconds));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s / 60 % 60);
}

}  // namespace

Progress::Progress(std::string what, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      start_(Clock::now()),
      next_(start_ + kFirst),
      terminal_(ErrorIsTerminal()) {}

Progress::~Progress() {
  if (drawn_ && terminal_) WriteErr("\r\x1b[K");
}

void Progress::Update(int64_t done, int64_t total) {
  const auto now = Clock::now();
  if (now < next_ || total <= 0 || done >= total) return;
  next_ = now + (terminal_ ? kOnTerminal : kElsewhere);
  std::string line = fmt::format("{} {}%", what_, 100 * done / total);
  if (!unit_.empty()) line += fmt::format(" ({} of {} {})", done, total, unit_);
  if (done > 0) {
    const double elapsed = std::chrono::duration<double>(now - start_).count();
    line += fmt::format(", {} left", Duration(elapsed * static_cast<double>(total - done) / static_cast<double>(done)));
  }
  WriteErr(terminal_ ? "\r" + line + "\x1b[K" : line + "\n");
  drawn_ = true;
}

}  // namespace thermocline
