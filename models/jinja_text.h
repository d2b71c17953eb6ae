// What templates do to texts. Every character keeps its origin; a character made from another inherits it.
#pragma once

#include <cstdint>

#include "models/jinja_builtins.h"

namespace thermocline::jinja {

enum class Casing { kUpper, kLower, kTitle, kCapitalize };

// Without leading or trailing white space, or characters of `chars`.
Text Stripped(const Text& text, const Text* chars, bool left, bool right);
Text Mapped(const Text& text, Casing casing, Budget& budget);
// `count` < 0: all.
Text Replaced(const Text& text, const Text& old_part, const Text& new_part, int64_t count, Budget& budget);
// As Python's str.split; `separator` nullptr: runs of white space; `max` < 0: all.
List Split(const Text& text, const Text* separator, int64_t max, Budget& budget);
// As Python's json.dumps(ensure_ascii=False); `indent` < 0: on one line.
void AppendJson(const Value& value, int indent, int level, Text& out, Budget& budget);

}  // namespace thermocline::jinja
