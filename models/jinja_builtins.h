// Filters, tests, methods and functions of the template language. To add one, write it in jinja_builtins.cc and name
// it in the table at the end of its kind.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/jinja.h"

namespace thermocline::jinja {

// What a rendering may still spend, and where it is: every error names the place.
class Budget {
 public:
  explicit Budget(const std::string& name) : name_(name) {}
  Position at;  // of the node being evaluated

  void Charge(uint64_t steps);
  void ChargeText(size_t bytes);        // a text of so many bytes is made
  void ChargeCharacters(size_t bytes);  // a text is gone through character by character
  void ChargeCall();                    // of a filter, test, method, function or macro
  void ChargeItems(size_t items);       // a list of so many items is made
  [[noreturn]] void Fail(std::string_view message) const;
  const std::string& name() const { return name_; }

 private:
  const std::string& name_;
  uint64_t steps_ = 0;
};

struct Arguments {
  Budget& budget;
  std::string_view function;  // for errors
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or called `keyword` ("": only by place); nullptr when it is left out.
  const Value* Find(size_t index, std::string_view keyword = "") const;
  // These fail when the argument is of another kind, and without `fallback` when it is left out.
  const Text& TextAt(size_t index, std::string_view keyword = "") const;
  int64_t IntegerAt(size_t index, std::string_view keyword, int64_t fallback) const;
  bool TruthAt(size_t index, std::string_view keyword) const;  // false when left out
};

// nullptr: no such name.
using FilterFunction = Value (*)(const Value& value, const Arguments& arguments);
using TestFunction = bool (*)(const Value& value, const Arguments& arguments);
FilterFunction FindFilter(std::string_view name);
TestFunction FindTest(std::string_view name);
FilterFunction FindMethod(const Value& of, std::string_view name);  // of strings and dictionaries
FilterFunction FindFunction(std::string_view name);                 // global; `value` is not used
std::string FilterNames();
std::string TestNames();

// As Python's str() writes it; undefined is empty.
Text ToText(const Value& value, Budget& budget);
// The items of a list, the keys of a dictionary, the characters of a string, nothing of undefined.
List ToList(const Value& value, Budget& budget);
// value.name or value['name']: a field of a dictionary or a namespace, else undefined.
Value Field(const Value& value, std::string_view name, Budget& budget);
// Python's ==; numbers of all kinds and booleans compare by value.
bool Equal(const Value& a, const Value& b, Budget& budget);
bool Contains(const Value& container, const Value& item, Budget& budget);

// Where the characters of a text begin, and its size at the end.
std::vector<size_t> CharacterStarts(const Text& text, Budget& budget);

}  // namespace thermocline::jinja
