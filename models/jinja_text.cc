#include "models/jinja_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/limits.h"
#include "models/unicode.h"

namespace thermocline::jinja {
namespace {

// Python counts the separators U+001C to U+001F as white space, Unicode does not.
bool IsPythonSpace(char32_t code) { return IsSpace(code) || (code >= 0x1C && code <= 0x1F); }

Utf8Char CharBefore(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return DecodeUtf8(text, begin);
}

std::string RealText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

// The text in quotes, with Python's or JSON's escapes; what is escaped keeps its origin.
void AppendQuoted(const Text& text, bool json, Text& out, Budget& budget) {
  const bool single =
      !json && (text.str().find('\'') == std::string::npos || text.str().find('"') != std::string::npos);
  const std::string_view quote = single ? "'" : "\"";
  out.Append(quote, false);
  constexpr std::string_view kFrom = "\n\t\r\b\f", kTo = "ntrbf";
  size_t plain = 0;  // [plain, pos) needs no escape
  for (size_t pos = 0; pos < text.size(); ++pos) {
    const char c = text.str()[pos];
    std::string escape;
    if (const size_t at = kFrom.substr(0, json ? 5 : 3).find(c); at != std::string_view::npos) {
      escape = fmt::format("\\{}", kTo[at]);
    } else if (c == '\\' || c == quote[0]) {
      escape = fmt::format("\\{}", c);
    } else if (static_cast<uint8_t>(c) < 0x20 || (!json && c == 0x7F)) {
      escape = json ? fmt::format("\\u{:04x}", c) : fmt::format("\\x{:02x}", c);
    } else {
      continue;
    }
    out.AppendSlice(text, plain, pos);
    out.Append(escape, text.FromMessage(pos));
    plain = pos + 1;
  }
  out.AppendSlice(text, plain, text.size());
  out.Append(quote, false);
  budget.ChargeCharacters(text.size());
}

void AppendRepr(const Value& value, Text& out, Budget& budget) {
  budget.Charge(1);
  if (value.text() != nullptr) {
    AppendQuoted(*value.text(), false, out, budget);
  } else if (value.list() != nullptr) {
    out.Append("[", false);
    for (const Value& item : *value.list()) {
      if (&item != value.list()->data()) out.Append(", ", false);
      AppendRepr(item, out, budget);
    }
    out.Append("]", false);
  } else if (value.dict() != nullptr) {
    out.Append("{", false);
    for (const auto& field : *value.dict()) {
      if (&field != value.dict()->data()) out.Append(", ", false);
      AppendQuoted(field.first, false, out, budget);
      out.Append(": ", false);
      AppendRepr(field.second, out, budget);
    }
    out.Append("}", false);
  } else {
    out.Append(ToText(value, budget));
  }
  budget.ChargeText(out.size() > kMaxTemplateOutputBytes ? out.size() : 0);
}

}  // namespace

Text Stripped(const Text& text, const Text* chars, bool left, bool right) {
  const std::string_view str = text.str();
  const auto goes = [&](const Utf8Char& c, size_t at) {
    if (chars == nullptr) return IsPythonSpace(c.code);
    return chars->str().find(str.substr(at, static_cast<size_t>(c.bytes))) != std::string::npos;
  };
  size_t begin = 0, end = str.size();
  while (left && begin < end) {
    const Utf8Char c = DecodeUtf8(str, begin);
    if (!goes(c, begin)) break;
    begin += static_cast<size_t>(c.bytes);
  }
  while (right && begin < end) {
    const Utf8Char c = CharBefore(str, end);
    const size_t at = end - static_cast<size_t>(c.bytes);
    if (!goes(c, at)) break;
    end = at;
  }
  return text.Slice(begin, end);
}

Text Mapped(const Text& text, Casing casing, Budget& budget) {
  Text mapped;
  bool begins = true;  // a word, or the text
  for (size_t pos = 0; pos < text.size();) {
    const Utf8Char c = DecodeUtf8(text.str(), pos);
    const bool is_letter = IsLetter(c.code);
    const bool upper = casing == Casing::kUpper || (casing != Casing::kLower && begins);
    std::string one;
    AppendUtf8(upper ? ToUpper(c.code) : ToLower(c.code), one);
    mapped.Append(one, text.FromMessage(pos));
    begins = casing == Casing::kTitle && !is_letter;
    pos += static_cast<size_t>(c.bytes);
  }
  budget.ChargeCharacters(mapped.size());
  return mapped;
}

Text Replaced(const Text& text, const Text& old_part, const Text& new_part, int64_t count, Budget& budget) {
  if (old_part.size() == 0) budget.Fail("replace needs a text that is not empty");
  Text replaced;
  size_t pos = 0;
  for (int64_t n = 0; count < 0 || n < count; ++n) {
    const size_t at = text.str().find(old_part.str(), pos);
    if (at == std::string::npos) break;
    replaced.AppendSlice(text, pos, at);
    replaced.Append(new_part);
    pos = at + old_part.size();
    budget.Charge(1 + new_part.size() / 64);
    if (replaced.size() > kMaxTemplateOutputBytes) break;  // refused below
  }
  replaced.AppendSlice(text, pos, text.size());
  budget.ChargeText(replaced.size());
  return replaced;
}

List Split(const Text& text, const Text* separator, int64_t max, Budget& budget) {
  if (separator != nullptr && separator->size() == 0) budget.Fail("split needs a separator that is not empty");
  List parts;
  budget.ChargeCharacters(text.size());
  const std::string_view str = text.str();
  const auto add = [&](size_t begin, size_t end) {
    parts.push_back(text.Slice(begin, end));
    budget.ChargeItems(parts.size());
  };
  if (separator != nullptr) {
    size_t pos = 0;
    for (int64_t n = 0; max < 0 || n < max; ++n) {
      const size_t at = str.find(separator->str(), pos);
      if (at == std::string::npos) break;
      add(pos, at);
      pos = at + separator->size();
    }
    add(pos, str.size());
    return parts;
  }
  const auto skip = [&](size_t pos, bool space) {
    while (pos < str.size()) {
      const Utf8Char c = DecodeUtf8(str, pos);
      if (IsPythonSpace(c.code) != space) break;
      pos += static_cast<size_t>(c.bytes);
    }
    return pos;
  };
  for (size_t pos = skip(0, true); pos < str.size();) {
    if (max >= 0 && std::ssize(parts) == max) {
      add(pos, str.size());  // as it is, as Python has it
      break;
    }
    const size_t end = skip(pos, false);
    add(pos, end);
    pos = skip(end, true);
  }
  return parts;
}

void AppendJson(const Value& value, int indent, int level, Text& out, Budget& budget) {
  budget.Charge(1);
  const auto line = [&](int at) {
    if (indent < 0) return;
    out.Append("\n", false);
    out.Append(std::string(static_cast<size_t>(indent * at), ' '), false);
  };
  const std::string_view comma = indent >= 0 ? "," : ", ";
  if (value.text() != nullptr) {
    AppendQuoted(*value.text(), true, out, budget);
  } else if (value.list() != nullptr || value.dict() != nullptr) {
    const bool is_list = value.list() != nullptr;
    const size_t n = is_list ? value.list()->size() : value.dict()->size();
    out.Append(is_list ? "[" : "{", false);
    for (size_t i = 0; i < n; ++i) {
      if (i > 0) out.Append(comma, false);
      line(level + 1);
      if (!is_list) {
        AppendQuoted((*value.dict())[i].first, true, out, budget);
        out.Append(": ", false);
      }
      AppendJson(is_list ? (*value.list())[i] : (*value.dict())[i].second, indent, level + 1, out, budget);
    }
    if (n > 0) line(level);
    out.Append(is_list ? "]" : "}", false);
  } else if (value.boolean() != nullptr) {
    out.Append(*value.boolean() ? "true" : "false", false);
  } else if (value.is_none()) {
    out.Append("null", false);
  } else if (value.integer() != nullptr || value.real() != nullptr) {
    out.Append(ToText(value, budget));
  } else {
    budget.Fail(fmt::format("tojson cannot write {}", value.KindName()));
  }
  if (out.size() > kMaxTemplateOutputBytes) budget.ChargeText(out.size());
}

Text ToText(const Value& value, Budget& budget) {
  if (value.text() != nullptr) return *value.text();
  if (value.undefined() != nullptr) return Text();
  if (value.is_none()) return Text("None");
  if (value.boolean() != nullptr) return Text(*value.boolean() ? "True" : "False");
  if (value.integer() != nullptr) return Text(std::to_string(*value.integer()));
  if (value.real() != nullptr) return Text(RealText(*value.real()));
  if (value.list() == nullptr && value.dict() == nullptr)
    budget.Fail(fmt::format("{} cannot be written out", value.KindName()));
  Text repr;
  AppendRepr(value, repr, budget);
  return repr;
}

List ToList(const Value& value, Budget& budget) {
  List items;
  if (value.list() != nullptr) {
    items = *value.list();
  } else if (value.dict() != nullptr) {
    for (const auto& [key, field] : *value.dict()) items.emplace_back(key);
  } else if (value.text() != nullptr) {
    const std::vector<size_t> starts = CharacterStarts(*value.text(), budget);
    budget.ChargeItems(starts.size());
    for (size_t i = 0; i + 1 < starts.size(); ++i) items.emplace_back(value.text()->Slice(starts[i], starts[i + 1]));
  } else if (value.undefined() == nullptr) {
    budget.Fail(fmt::format("{} has no items", value.KindName()));
  }
  budget.Charge(items.size());
  return items;
}

Value Field(const Value& value, std::string_view name, Budget& budget) {
  if (value.undefined() != nullptr) {
    budget.Fail(fmt::format("{} is undefined, so it has no {}", value.undefined()->name, name));
  }
  const Dict* fields = value.name_space() != nullptr ? &value.name_space()->fields : value.dict();
  const Value* found = fields == nullptr ? nullptr : FindKey(*fields, name);
  return found == nullptr ? Value(Undefined{std::string(name)}) : *found;
}

bool Equal(const Value& a, const Value& b, Budget& budget) {
  budget.Charge(1);
  double x = 0, y = 0;
  if (a.integer() != nullptr && b.integer() != nullptr) return *a.integer() == *b.integer();
  if (AsNumber(a, x) && AsNumber(b, y)) return x == y;
  if (a.text() != nullptr && b.text() != nullptr) return a.text()->str() == b.text()->str();
  if (a.list() != nullptr && b.list() != nullptr) {
    return std::ranges::equal(*a.list(), *b.list(),
                              [&](const Value& v, const Value& w) { return Equal(v, w, budget); });
  }
  if (a.dict() != nullptr && b.dict() != nullptr) {
    return a.dict()->size() == b.dict()->size() && std::ranges::all_of(*a.dict(), [&](const auto& field) {
             budget.Charge(b.dict()->size());
             const Value* value = FindKey(*b.dict(), field.first.str());
             return value != nullptr && Equal(*value, field.second, budget);
           });
  }
  if (a.name_space() != nullptr) return a.name_space() == b.name_space();
  return (a.undefined() != nullptr && b.undefined() != nullptr) || (a.is_none() && b.is_none());
}

bool Contains(const Value& container, const Value& item, Budget& budget) {
  if (container.text() != nullptr) {
    if (item.text() == nullptr) budget.Fail(fmt::format("a string cannot hold {}", item.KindName()));
    budget.ChargeText(container.text()->size());
    return container.text()->str().find(item.text()->str()) != std::string::npos;
  }
  if (container.dict() != nullptr)
    return item.text() != nullptr && FindKey(*container.dict(), item.text()->str()) != nullptr;
  if (container.undefined() != nullptr) return false;
  if (container.list() == nullptr) budget.Fail(fmt::format("{} has no items", container.KindName()));
  budget.Charge(container.list()->size());
  return std::ranges::any_of(*container.list(), [&](const Value& value) { return Equal(value, item, budget); });
}

std::vector<size_t> CharacterStarts(const Text& text, Budget& budget) {
  budget.ChargeCharacters(text.size());
  std::vector<size_t> starts;
  for (size_t pos = 0; pos < text.size(); ++pos) {
    if ((static_cast<uint8_t>(text.str()[pos]) & 0xC0) != 0x80) starts.push_back(pos);
  }
  starts.push_back(text.size());
  return starts;
}

}  // namespace thermocline::jinja
