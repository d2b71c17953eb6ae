// CHECK(condition): an invariant of our own. Always on, never applied to input. Included by sources, not by headers:
// doctest has a CHECK too.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace thermocline {

[[noreturn]] inline void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: internal error: %s\nThis is a bug in Thermocline, please report it.\n", file, line,
               condition);
  std::abort();
}

}  // namespace thermocline

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::thermocline::CheckFailed(#condition, __FILE__, __LINE__))
