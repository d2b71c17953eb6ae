#include "models/tokenizer_split.h"

#include <array>
#include <utility>

#include "models/unicode.h"

namespace thermocline {
namespace {

constexpr std::pair<std::string_view, PreTokenizer> kNames[] = {
    {"default", PreTokenizer::kDefault},
    {"gpt-2", PreTokenizer::kGpt2},
    {"smollm", PreTokenizer::kSmollm},
};

enum class Class : uint8_t { kLetter, kNumber, kSpace, kOther };

Class ClassOf(char32_t code) {
  static const auto kAscii = [] {
    std::array<Class, 128> classes{};
    for (char32_t c = 0; c < 128; ++c) {
      classes[c] = IsLetter(c)   ? Class::kLetter
                   : IsNumber(c) ? Class::kNumber
                   : IsSpace(c)  ? Class::kSpace
                                 : Class::kOther;
    }
    return classes;
  }();
  if (code < 128) return kAscii[code];
  return IsLetter(code)   ? Class::kLetter
         : IsNumber(code) ? Class::kNumber
         : IsSpace(code)  ? Class::kSpace
                          : Class::kOther;
}

// The end of the run of characters of one class that begins at `pos`.
size_t RunEnd(std::string_view text, size_t pos, Class of) {
  while (pos < text.size()) {
    const Utf8Char c = DecodeUtf8(text, pos);
    if (ClassOf(c.code) != of) break;
    pos += static_cast<size_t>(c.bytes);
  }
  return pos;
}

// Where the contraction that begins at text[pos] ends; pos when there is none.
size_t ContractionEnd(std::string_view text, size_t pos) {
  for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.substr(pos).starts_with(suffix)) return pos + suffix.size();
  }
  return pos;
}

// A run of white space [pos, end) before more text gives its last character away: to the next word if it is ' ', else
// to a word of its own.
size_t SpaceWordEnd(std::string_view text, size_t pos, size_t end) {
  if (end == text.size()) return end;
  size_t last = end - 1;
  while ((static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
  return last > pos ? last : end;
}

void SplitGpt2(std::string_view text, const WordSink& sink) {
  size_t pos = 0;
  while (pos < text.size()) {
    size_t end = text[pos] == '\'' ? ContractionEnd(text, pos) : pos;
    if (end == pos) {
      const size_t start = pos + (text[pos] == ' ' && pos + 1 < text.size() ? 1 : 0);
      Class of = ClassOf(DecodeUtf8(text, start).code);
      if (of == Class::kSpace) {
        end = SpaceWordEnd(text, pos, RunEnd(text, pos, Class::kSpace));
      } else {
        end = RunEnd(text, start, of);
      }
    }
    sink(text.substr(pos, end - pos));
    pos = end;
  }
}

// Hands runs of characters that satisfy `is`, at most `max_run` long, and what lies between them to `sink`.
template <typename Predicate>
void Isolate(std::string_view text, size_t max_run, const Predicate& is, const WordSink& sink) {
  size_t start = 0, pos = 0, run = 0;  // [start, pos) is one run of `run` characters, or lies between runs (0)
  while (pos < text.size()) {
    const Utf8Char c = DecodeUtf8(text, pos);
    const bool in = is(c.code);
    if (pos > start && (in != (run > 0) || run == max_run)) {
      sink(text.substr(start, pos - start));
      start = pos;
      run = 0;
    }
    if (in) ++run;
    pos += static_cast<size_t>(c.bytes);
  }
  if (pos > start) sink(text.substr(start));
}

bool IsDefaultPunctuation(char32_t code) {
  return IsPunctuation(code) ||
         (code < 128 && std::string_view("$+<=>^~|").find(static_cast<char>(code)) != std::string_view::npos);
}

// [0-9][0-9][0-9]: groups of exactly three; what is left of a run stays with its neighbours.
void SplitDigitGroups(std::string_view text, const WordSink& sink) {
  const auto digit = [&](size_t i) { return i < text.size() && text[i] >= '0' && text[i] <= '9'; };
  size_t start = 0, pos = 0;
  while (pos < text.size()) {
    if (!(digit(pos) && digit(pos + 1) && digit(pos + 2))) {
      ++pos;
      continue;
    }
    if (pos > start) sink(text.substr(start, pos - start));
    sink(text.substr(pos, 3));
    start = pos += 3;
  }
  if (pos > start) sink(text.substr(start));
}

}  // namespace

std::optional<PreTokenizer> PreTokenizerFromName(std::string_view name) {
  for (const auto& [known, kind] : kNames) {
    if (known == name) return kind;
  }
  return std::nullopt;
}

std::string PreTokenizerNames() {
  std::string names;
  for (const auto& [name, kind] : kNames) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

void SplitWords(PreTokenizer kind, std::string_view text, const WordSink& sink) {
  constexpr size_t kAnyRun = SIZE_MAX;
  const WordSink gpt2 = [&](std::string_view part) { SplitGpt2(part, sink); };
  switch (kind) {
    case PreTokenizer::kGpt2: return SplitGpt2(text, sink);
    case PreTokenizer::kSmollm: return Isolate(text, 1, IsNumber, gpt2);
    case PreTokenizer::kDefault: {
      const WordSink digits = [&](std::string_view part) { SplitDigitGroups(part, sink); };
      const WordSink numbers = [&](std::string_view part) { Isolate(part, kAnyRun, IsNumber, digits); };
      const WordSink words = [&](std::string_view part) { SplitGpt2(part, numbers); };
      return Isolate(text, kAnyRun, IsDefaultPunctuation, words);
    }
  }
}

}  // namespace thermocline
