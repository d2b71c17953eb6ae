#include "models/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>

namespace thermocline {
namespace {

struct Range {
  char32_t first, last;
};

// Assigned after Unicode 15.0, which Debian 12's utf8proc knows: letters and numbers of Unicode 15.1 and 16, and the
// numbers of 17 (the digit splitter of Hugging Face `tokenizers` already isolates these).
constexpr Range kNewerLetters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3}, {0x10d4a, 0x10d65},
    {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e},
    {0x11390, 0x113b5}, {0x113b7, 0x113b7}, {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0},
    {0x13460, 0x143fa}, {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d},
};
constexpr Range kNewerNumbers[] = {
    {0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9}, {0x11de0, 0x11de9}, {0x16130, 0x16139},
    {0x16d70, 0x16d79}, {0x16ff4, 0x16ff6}, {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa},
};

template <size_t n>
bool Holds(const Range (&ranges)[n], char32_t code) {
  const auto* after = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                       [](char32_t c, const Range& range) { return c < range.first; });
  return after != std::begin(ranges) && code <= std::prev(after)->last;
}

utf8proc_category_t Category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

// The bounds of the second byte keep out overlong forms, surrogates and what lies beyond U+10FFFF.
struct Lead {
  int bytes;  // 0: no lead byte
  uint8_t second_min, second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0xC2 || byte > 0xF4) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte < 0xF0)
    return {3, static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80), static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
  return {4, static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80), static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[pos + i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {first, 1, true, false};
  const Lead lead = LeadOf(first);
  if (lead.bytes == 0) return {0, 1, false, false};
  char32_t code = first & (0x7F >> lead.bytes);
  for (int i = 1; i < lead.bytes; ++i) {
    if (pos + static_cast<size_t>(i) >= text.size()) return {0, i, false, true};
    const uint8_t next = byte(static_cast<size_t>(i));
    const uint8_t min = i == 1 ? lead.second_min : 0x80, max = i == 1 ? lead.second_max : 0xBF;
    if (next < min || next > max) return {0, i, false, false};
    code = code << 6 | (next & 0x3F);
  }
  return {code, lead.bytes, true, false};
}

void AppendUtf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int bytes = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  out += static_cast<char>((0xF00 >> bytes & 0xFF) | code >> 6 * (bytes - 1));
  for (int i = bytes - 2; i >= 0; --i) out += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
}

size_t AppendValidUtf8(std::string_view text, std::string& out) {
  size_t replaced = 0, clean = 0, pos = 0;  // [clean, pos) is valid and not yet copied
  while (pos < text.size()) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (!c.valid) {
      out.append(text, clean, pos - clean);
      out += kReplacementCharacter;
      ++replaced;
      clean = pos + static_cast<size_t>(c.bytes);
    }
    pos += static_cast<size_t>(c.bytes);
  }
  out.append(text, clean, pos - clean);
  return replaced;
}

bool IsLetter(char32_t code) {
  const auto category = Category(code);
  if (category == UTF8PROC_CATEGORY_CN) return Holds(kNewerLetters, code);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsNumber(char32_t code) {
  const auto category = Category(code);
  if (category == UTF8PROC_CATEGORY_CN) return Holds(kNewerNumbers, code);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(char32_t code) {
  const auto category = Category(code);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsSpace(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  if (code == 0x85) return true;
  const auto category = Category(code);
  return category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
}

char32_t ToUpper(char32_t code) { return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))); }
char32_t ToLower(char32_t code) { return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))); }

}  // namespace thermocline
