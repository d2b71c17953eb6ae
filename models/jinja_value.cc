#include "models/jinja_value.h"

#include <algorithm>
#include <stdexcept>

#include "models/limits.h"

namespace thermocline::jinja {
namespace {

int Deeper(int depth) {
  if (depth >= kMaxTemplateValueDepth) throw std::length_error("lists and dictionaries are nested too deeply");
  return depth + 1;
}

}  // namespace

bool Text::FromMessage(size_t pos) const { return std::ranges::upper_bound(runs_, pos, {}, &Run::end)->from_message; }

void Text::Append(std::string_view text, bool from_message) {
  if (text.empty()) return;
  str_ += text;
  if (runs_.empty() || runs_.back().from_message != from_message) runs_.push_back({0, from_message});
  runs_.back().end = str_.size();
}

void Text::Append(const Text& text) { AppendSlice(text, 0, text.size()); }

void Text::AppendSlice(const Text& text, size_t begin, size_t end) {
  auto run = std::ranges::upper_bound(text.runs_, begin, {}, &Run::end);
  while (begin < end) {
    const size_t stop = std::min(end, run->end);
    Append(std::string_view(text.str_).substr(begin, stop - begin), run->from_message);
    begin = stop;
    ++run;
  }
}

Text Text::Slice(size_t begin, size_t end) const {
  Text slice;
  slice.AppendSlice(*this, begin, end);
  return slice;
}

Value Value::Of(List list) {
  Value value;
  int depth = 0;
  for (const Value& item : list) depth = std::max(depth, item.depth_);
  value.depth_ = Deeper(depth);
  value.data_ = std::make_shared<const List>(std::move(list));
  return value;
}

Value Value::Of(Dict dict) {
  Value value;
  int depth = 0;
  for (const auto& [key, item] : dict) depth = std::max(depth, item.depth_);
  value.depth_ = Deeper(depth);
  value.data_ = std::make_shared<const Dict>(std::move(dict));
  return value;
}

bool Value::Truth() const {
  if (boolean() != nullptr) return *boolean();
  if (integer() != nullptr) return *integer() != 0;
  if (real() != nullptr) return *real() != 0;
  if (text() != nullptr) return text()->size() > 0;
  if (list() != nullptr) return !list()->empty();
  if (dict() != nullptr) return !dict()->empty();
  return undefined() == nullptr && !is_none();
}

std::string_view Value::KindName() const {
  static constexpr std::string_view kNames[] = {"undefined", "none",   "a boolean",    "an integer",  "a float",
                                                "a string",  "a list", "a dictionary", "a namespace", "a function"};
  return kNames[data_.index()];
}

bool AsNumber(const Value& value, double& number) {
  int64_t integer = 0;
  if (value.real() != nullptr) {
    number = *value.real();
  } else if (AsInteger(value, integer)) {
    number = static_cast<double>(integer);
  } else {
    return false;
  }
  return true;
}

bool AsInteger(const Value& value, int64_t& number) {
  if (value.integer() != nullptr) {
    number = *value.integer();
  } else if (value.boolean() != nullptr) {
    number = *value.boolean() ? 1 : 0;
  } else {
    return false;
  }
  return true;
}

const Value* FindKey(const Dict& dict, std::string_view key) {
  const auto at = std::ranges::find_if(dict, [&](const auto& field) { return field.first.str() == key; });
  return at == dict.end() ? nullptr : &at->second;
}

}  // namespace thermocline::jinja
