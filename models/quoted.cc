#include "models/quoted.h"

#include <fmt/format.h>

#include "models/limits.h"

namespace thermocline {

std::string Quoted(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text.substr(0, kMaxQuotedBytes)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      quoted += c;
    } else {
      quoted += fmt::format("\\x{:02x}", byte);
    }
  }
  return quoted + (text.size() > kMaxQuotedBytes ? "'..." : "'");
}

}  // namespace thermocline
