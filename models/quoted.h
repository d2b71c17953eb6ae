// Names from outside, made safe for an error message.
#pragma once

#include <string>
#include <string_view>

namespace thermocline {

// 'text' in quotes; control characters and bytes beyond ASCII as \xNN, and "..." after kMaxQuotedBytes.
std::string Quoted(std::string_view text);

}  // namespace thermocline
