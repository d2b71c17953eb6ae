// UTF-8 and the few character classes that pre-tokenizers and templates ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thermocline {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The character at text[pos] and its length in bytes. An invalid one gives `valid` = false and the length of the
// maximal invalid part (Unicode 16, section 3.9, "U+FFFD Substitution of Maximal Subparts"); `truncated` says that the
// part is a good beginning cut off by the end of the text.
struct Utf8Char {
  char32_t code = 0;
  int bytes = 0;
  bool valid = false;
  bool truncated = false;
};
Utf8Char DecodeUtf8(std::string_view text, size_t pos);  // pos < text.size()

void AppendUtf8(char32_t code, std::string& out);

// Appends text to `out` with U+FFFD for every maximal invalid part; returns how many there were.
size_t AppendValidUtf8(std::string_view text, std::string& out);

// Classes as the regexes of the reference tokenizers see them: \p{L}, \p{N} and \p{P} of Unicode 16, \s = White_Space.
bool IsLetter(char32_t code);
bool IsNumber(char32_t code);
bool IsPunctuation(char32_t code);
bool IsSpace(char32_t code);

char32_t ToUpper(char32_t code);  // simple case mapping: one character for one
char32_t ToLower(char32_t code);

}  // namespace thermocline
