// Text in and out of the process: the answer on standard output, everything else on standard error.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace thermocline {

// Opens /dev/null where standard input, output or error is closed, so that no file we open takes its place, and turns
// SIGPIPE into an error of the write. Call first.
void GuardStandardStreams();

bool InputIsTerminal();
bool OutputIsTerminal();
bool ErrorIsTerminal();  // and one that understands control sequences

// Writes all of it to standard output. Throws Error when that fails: closed, full.
void WriteOut(std::string_view text);
// To standard error; failing is ignored.
void WriteErr(std::string_view text);
template <typename... Args>
void Note(fmt::format_string<Args...> format, Args&&... args) {
  WriteErr(fmt::format(format, std::forward<Args>(args)...) + "\n");
}

// All bytes of a file or of standard input. Throws Error when it cannot be read or exceeds kMaxTextBytes.
std::string ReadText(const std::filesystem::path& path);
std::string ReadInput();

// Text of a user with U+FFFD for invalid UTF-8, which is then said on standard error. `source` names the text.
std::string ValidText(std::string text, std::string_view source);

// Without the control characters (but newline and tab) with which text from outside could command a terminal; one
// U+FFFD for each. Of invalid UTF-8 likewise.
std::string TerminalSafe(std::string_view text);

// "98.4 MB": decimal units.
std::string HumanBytes(double bytes);

}  // namespace thermocline
