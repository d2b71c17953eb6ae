// Errors come in two kinds that never mix (see HACKING.md "Errors").
//   Error  something outside us is wrong: a file, a flag, a prompt, the machine. It says what, where and what to do,
//          and is caught in `main` or at the request.
//   CHECK  an invariant of our own is broken. Always on, never applied to input.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace thermocline {

class Error : public std::runtime_error {
 public:
  template <typename... Args>
  explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

[[noreturn]] inline void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: internal error: %s\nThis is a bug in Thermocline, please report it.\n", file, line,
               condition);
  std::abort();
}

}  // namespace thermocline

#define CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::thermocline::CheckFailed(#condition, __FILE__, __LINE__))
