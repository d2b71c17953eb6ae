// Errors come in two kinds that never mix.
//   Error  something outside us is wrong: a file, a flag, a prompt, the machine. It says what, where and what to do,
//          and is caught in `main` or at the request.
//   CHECK  an invariant of our own is broken: models/check.h.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <utility>

namespace thermocline {

class Error : public std::runtime_error {
 public:
  template <typename... Args>
  explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

}  // namespace thermocline
