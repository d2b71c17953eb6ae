#include "models/jinja_builtins.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <span>

#include "models/error.h"
#include "models/jinja_text.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "models/unicode.h"

namespace thermocline::jinja {
namespace {

template <typename Function>
struct Entry {
  std::string_view name;
  Function function;
};

template <typename Function>
Function FindIn(std::span<const Entry<Function>> table, std::string_view name) {
  const auto at = std::ranges::find(table, name, &Entry<Function>::name);
  return at == table.end() ? nullptr : at->function;
}

template <typename Function>
std::string NamesOf(std::span<const Entry<Function>> table) {
  std::string names;
  for (const auto& entry : table) names += (names.empty() ? "" : ", ") + std::string(entry.name);
  return names;
}

Value Made(List list, const Arguments& args) {
  args.budget.ChargeItems(list.size());
  return Value::Of(std::move(list));
}

[[noreturn]] void FailKind(const Value& value, const Arguments& args) {
  args.budget.Fail(fmt::format("{} cannot be used on {}", args.function, value.KindName()));
}

const Text& Self(const Value& value, const Arguments& args) {
  if (value.text() == nullptr) FailKind(value, args);
  return *value.text();
}

// ---- Filters ----

Text Printed(const Value& value, const Arguments& args) { return ToText(value, args.budget); }

Value Trim(const Value& value, const Arguments& args) {
  const Value* chars = args.Find(0, "chars");
  return Stripped(Printed(value, args), chars == nullptr || chars->is_none() ? nullptr : &args.TextAt(0, "chars"), true,
                  true);
}
Value Upper(const Value& value, const Arguments& args) {
  return Mapped(Printed(value, args), Casing::kUpper, args.budget);
}
Value Lower(const Value& value, const Arguments& args) {
  return Mapped(Printed(value, args), Casing::kLower, args.budget);
}
Value Title(const Value& value, const Arguments& args) {
  return Mapped(Printed(value, args), Casing::kTitle, args.budget);
}
Value Capitalize(const Value& value, const Arguments& args) {
  return Mapped(Printed(value, args), Casing::kCapitalize, args.budget);
}

Value Length(const Value& value, const Arguments& args) {
  if (value.text() != nullptr)
    return Value(static_cast<int64_t>(CharacterStarts(*value.text(), args.budget).size()) - 1);
  if (value.list() != nullptr) return Value(static_cast<int64_t>(value.list()->size()));
  if (value.dict() != nullptr) return Value(static_cast<int64_t>(value.dict()->size()));
  if (value.undefined() != nullptr) return Value(int64_t{0});
  FailKind(value, args);
}

Value Default(const Value& value, const Arguments& args) {
  const bool use = value.undefined() != nullptr || (args.TruthAt(1, "boolean") && !value.Truth());
  if (!use) return value;
  const Value* fallback = args.Find(0, "default_value");
  return fallback == nullptr ? Value(Text()) : *fallback;
}

Value First(const Value& value, const Arguments& args) {
  const List items = ToList(value, args.budget);
  return items.empty() ? Value() : items.front();
}
Value Last(const Value& value, const Arguments& args) {
  const List items = ToList(value, args.budget);
  return items.empty() ? Value() : items.back();
}

Value AttributeOf(const Value& value, const Text& path, Budget& budget) {
  Value at = value;
  std::string_view rest = path.str();
  while (true) {
    const size_t dot = rest.find('.');
    at = Field(at, rest.substr(0, dot), budget);
    if (dot == std::string_view::npos) return at;
    rest.remove_prefix(dot + 1);
  }
}

Value Join(const Value& value, const Arguments& args) {
  const Value* between = args.Find(0, "d");
  const bool by_attribute = args.Find(1, "attribute") != nullptr;
  Text joined;
  bool first = true;
  for (const Value& item : ToList(value, args.budget)) {
    if (!first && between != nullptr) joined.Append(ToText(*between, args.budget));
    joined.Append(
        ToText(by_attribute ? AttributeOf(item, args.TextAt(1, "attribute"), args.budget) : item, args.budget));
    args.budget.ChargeText(joined.size());
    first = false;
  }
  return joined;
}

Value ReplaceFilter(const Value& value, const Arguments& args) {
  return Replaced(Printed(value, args), args.TextAt(0, "old"), args.TextAt(1, "new"), args.IntegerAt(2, "count", -1),
                  args.budget);
}

Value ToJson(const Value& value, const Arguments& args) {
  const Value* indent = args.Find(0, "indent");
  const int64_t n = indent == nullptr || indent->is_none() ? -1 : args.IntegerAt(0, "indent", -1);
  if (n > 16) args.budget.Fail("tojson takes an indent of at most 16");
  Text json;
  AppendJson(value, static_cast<int>(n), 0, json, args.budget);
  return json;
}

Value ListFilter(const Value& value, const Arguments& args) { return Made(ToList(value, args.budget), args); }
Value String(const Value& value, const Arguments& args) { return Printed(value, args); }

Value Int(const Value& value, const Arguments& args) {
  int64_t integer = 0;
  if (AsInteger(value, integer)) return Value(integer);
  if (value.real() != nullptr && std::abs(*value.real()) < 9e18) return Value(static_cast<int64_t>(*value.real()));
  if (value.text() != nullptr) {
    const Text trimmed = Stripped(*value.text(), nullptr, true, true);
    const char* end = trimmed.str().data() + trimmed.size();
    const auto [stop, error] = std::from_chars(trimmed.str().data(), end, integer);
    if (error == std::errc() && stop == end) return Value(integer);
  }
  return Value(args.IntegerAt(0, "default", 0));
}

Value Float(const Value& value, const Arguments&) {
  double number = 0;
  if (AsNumber(value, number)) return Value(number);
  if (value.text() != nullptr) {
    const Text trimmed = Stripped(*value.text(), nullptr, true, true);
    const char* end = trimmed.str().data() + trimmed.size();
    const auto [stop, error] = std::from_chars(trimmed.str().data(), end, number);
    if (error == std::errc() && stop == end) return Value(number);
  }
  return Value(0.0);
}

Value Abs(const Value& value, const Arguments& args) {
  int64_t integer = 0;
  if (AsInteger(value, integer) && integer != INT64_MIN) return Value(integer < 0 ? -integer : integer);
  if (value.real() != nullptr) return Value(std::abs(*value.real()));
  FailKind(value, args);
}

Value Reverse(const Value& value, const Arguments& args) {
  List items = ToList(value, args.budget);
  std::ranges::reverse(items);
  if (value.text() == nullptr) return Made(std::move(items), args);
  Text text;
  for (const Value& item : items) text.Append(*item.text());
  return text;
}

Value Items(const Value& value, const Arguments& args) {
  List items;
  if (value.undefined() != nullptr) return Made({}, args);
  if (value.dict() == nullptr) FailKind(value, args);
  for (const auto& [key, field] : *value.dict()) items.push_back(Value::Of(List{key, field}));
  return Made(std::move(items), args);
}

Value Safe(const Value& value, const Arguments&) { return value; }

// Arguments from `from` on, for the filter or test that another applies.
Arguments Rest(const Arguments& args, size_t from, std::string_view function) {
  args.budget.ChargeCall();
  Arguments rest{args.budget, function, {}, {}};
  for (size_t i = from; i < args.positional.size(); ++i) rest.positional.push_back(args.positional[i]);
  return rest;
}

Value Map(const Value& value, const Arguments& args) {
  List mapped;
  const Value* attribute = args.Find(SIZE_MAX, "attribute");
  if (attribute == nullptr && args.positional.empty()) args.budget.Fail("map needs a filter or attribute=");
  if (!value.Truth()) return Made({}, args);  // none too, as jinja2 has it
  for (const Value& item : ToList(value, args.budget)) {
    if (attribute != nullptr) {
      mapped.push_back(AttributeOf(item, args.TextAt(SIZE_MAX, "attribute"), args.budget));
      continue;
    }
    const std::string& name = args.TextAt(0).str();
    const FilterFunction filter = FindFilter(name);
    if (filter == nullptr) args.budget.Fail(fmt::format("unknown filter {}", Quoted(name)));
    mapped.push_back(filter(item, Rest(args, 1, name)));
  }
  return Made(std::move(mapped), args);
}

// select, reject: test at 0; selectattr, rejectattr: attribute at 0, test at 1. Without a test, by truth.
Value Selected(const Value& value, const Arguments& args, bool by_attribute, bool wanted) {
  List selected;
  const size_t test_at = by_attribute ? 1 : 0;
  if (!value.Truth()) return Made({}, args);  // none too, as jinja2 has it
  for (const Value& item : ToList(value, args.budget)) {
    const Value tested = by_attribute ? AttributeOf(item, args.TextAt(0), args.budget) : item;
    bool passes = tested.Truth();
    if (args.Find(test_at) != nullptr) {
      const std::string& name = args.TextAt(test_at).str();
      const TestFunction test = FindTest(name);
      if (test == nullptr) args.budget.Fail(fmt::format("unknown test {}", Quoted(name)));
      passes = test(tested, Rest(args, test_at + 1, name));
    }
    if (passes == wanted) selected.push_back(item);
  }
  return Made(std::move(selected), args);
}
Value Select(const Value& value, const Arguments& args) { return Selected(value, args, false, true); }
Value Reject(const Value& value, const Arguments& args) { return Selected(value, args, false, false); }
Value SelectAttr(const Value& value, const Arguments& args) { return Selected(value, args, true, true); }
Value RejectAttr(const Value& value, const Arguments& args) { return Selected(value, args, true, false); }

constexpr Entry<FilterFunction> kFilters[] = {
    {"abs", Abs},
    {"capitalize", Capitalize},
    {"count", Length},
    {"d", Default},
    {"default", Default},
    {"first", First},
    {"float", Float},
    {"int", Int},
    {"items", Items},
    {"join", Join},
    {"last", Last},
    {"length", Length},
    {"list", ListFilter},
    {"lower", Lower},
    {"map", Map},
    {"reject", Reject},
    {"rejectattr", RejectAttr},
    {"replace", ReplaceFilter},
    {"reverse", Reverse},
    {"safe", Safe},
    {"select", Select},
    {"selectattr", SelectAttr},
    {"string", String},
    {"title", Title},
    {"tojson", ToJson},
    {"trim", Trim},
    {"upper", Upper},
};

// ---- Tests ----

const Value& Other(const Arguments& args) {
  if (args.positional.empty()) args.budget.Fail(fmt::format("the test {} needs an argument", args.function));
  return args.positional[0];
}

int64_t IntegerOf(const Value& value, const Arguments& args) {
  int64_t integer = 0;
  if (!AsInteger(value, integer)) FailKind(value, args);
  return integer;
}

bool IsDivisible(const Value& value, const Arguments& args) {
  const int64_t by = IntegerOf(Other(args), args);
  if (by == 0) args.budget.Fail("divisibleby needs a number that is not zero");
  return by == -1 || IntegerOf(value, args) % by == 0;
}

template <Casing casing>
bool IsCased(const Value& value, const Arguments& args) {
  return value.text() != nullptr && Mapped(*value.text(), casing, args.budget).str() == value.text()->str();
}

constexpr Entry<TestFunction> kTests[] = {
    {"boolean", [](const Value& v, const Arguments&) { return v.boolean() != nullptr; }},
    {"defined", [](const Value& v, const Arguments&) { return v.undefined() == nullptr; }},
    {"divisibleby", IsDivisible},
    {"eq", [](const Value& v, const Arguments& args) { return Equal(v, Other(args), args.budget); }},
    {"equalto", [](const Value& v, const Arguments& args) { return Equal(v, Other(args), args.budget); }},
    {"even", [](const Value& v, const Arguments& args) { return IntegerOf(v, args) % 2 == 0; }},
    {"false", [](const Value& v, const Arguments&) { return v.boolean() != nullptr && !*v.boolean(); }},
    {"float", [](const Value& v, const Arguments&) { return v.real() != nullptr; }},
    {"in", [](const Value& v, const Arguments& args) { return Contains(Other(args), v, args.budget); }},
    {"integer", [](const Value& v, const Arguments&) { return v.integer() != nullptr; }},
    {"iterable", [](const Value& v, const Arguments&) { return v.list() || v.dict() || v.text() || v.undefined(); }},
    {"lower", IsCased<Casing::kLower>},
    {"mapping", [](const Value& v, const Arguments&) { return v.dict() != nullptr; }},
    {"ne", [](const Value& v, const Arguments& args) { return !Equal(v, Other(args), args.budget); }},
    {"none", [](const Value& v, const Arguments&) { return v.is_none(); }},
    {"number",
     [](const Value& v, const Arguments&) {
       double number;
       return AsNumber(v, number);
     }},
    {"odd", [](const Value& v, const Arguments& args) { return IntegerOf(v, args) % 2 != 0; }},
    {"sequence", [](const Value& v, const Arguments&) { return v.list() || v.dict() || v.text() || v.undefined(); }},
    {"string", [](const Value& v, const Arguments&) { return v.text() != nullptr; }},
    {"true", [](const Value& v, const Arguments&) { return v.boolean() != nullptr && *v.boolean(); }},
    {"undefined", [](const Value& v, const Arguments&) { return v.undefined() != nullptr; }},
    {"upper", IsCased<Casing::kUpper>},
};

// ---- Methods ----

Value Strip(const Value& value, const Arguments& args, bool left, bool right) {
  const Value* chars = args.Find(0);
  return Stripped(Self(value, args), chars == nullptr || chars->is_none() ? nullptr : &args.TextAt(0), left, right);
}

// Whether a text begins (or ends) with the argument, or with one of a list.
Value Affix(const Value& value, const Arguments& args, bool begins) {
  const std::string& text = Self(value, args).str();
  const auto holds = [&](const Value& affix) {
    if (affix.text() == nullptr) FailKind(affix, args);
    return begins ? text.starts_with(affix.text()->str()) : text.ends_with(affix.text()->str());
  };
  const Value* affix = args.Find(0);
  if (affix == nullptr) args.budget.Fail(fmt::format("{} needs an argument", args.function));
  return Value(affix->list() != nullptr ? std::ranges::any_of(*affix->list(), holds) : holds(*affix));
}

Value SplitMethod(const Value& value, const Arguments& args) {
  const Value* separator = args.Find(0, "sep");
  const bool by_space = separator == nullptr || separator->is_none();
  List parts = Split(Self(value, args), by_space ? nullptr : &args.TextAt(0, "sep"), args.IntegerAt(1, "maxsplit", -1),
                     args.budget);
  return Made(std::move(parts), args);
}

Value Find(const Value& value, const Arguments& args) {
  const Text& text = Self(value, args);
  const size_t at = text.str().find(args.TextAt(0).str());
  if (at == std::string::npos) return Value(int64_t{-1});
  return Value(static_cast<int64_t>(CharacterStarts(text.Slice(0, at), args.budget).size()) - 1);
}

Value Count(const Value& value, const Arguments& args) {
  const std::string& text = Self(value, args).str();
  const std::string& part = args.TextAt(0).str();
  if (part.empty()) args.budget.Fail("count needs a text that is not empty");
  int64_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++n;
  args.budget.ChargeText(text.size());
  return Value(n);
}

constexpr Entry<FilterFunction> kTextMethods[] = {
    {"capitalize", Capitalize},
    {"count", Count},
    {"endswith", [](const Value& v, const Arguments& args) { return Affix(v, args, false); }},
    {"find", Find},
    {"join",
     [](const Value& v, const Arguments& args) {
       return Join(args.positional.empty() ? Value() : args.positional[0], {args.budget, args.function, {v}, {}});
     }},
    {"lower", Lower},
    {"lstrip", [](const Value& v, const Arguments& args) { return Strip(v, args, true, false); }},
    {"replace", ReplaceFilter},
    {"rstrip", [](const Value& v, const Arguments& args) { return Strip(v, args, false, true); }},
    {"split", SplitMethod},
    {"startswith", [](const Value& v, const Arguments& args) { return Affix(v, args, true); }},
    {"strip", [](const Value& v, const Arguments& args) { return Strip(v, args, true, true); }},
    {"title", Title},
    {"upper", Upper},
};

Value Get(const Value& value, const Arguments& args) {
  const Value* found = FindKey(*value.dict(), args.TextAt(0).str());
  if (found != nullptr) return *found;
  return args.Find(1) == nullptr ? Value(None{}) : *args.Find(1);
}

Value Values(const Value& value, const Arguments& args) {
  List values;
  for (const auto& [key, field] : *value.dict()) values.push_back(field);
  return Made(std::move(values), args);
}

constexpr Entry<FilterFunction> kDictMethods[] = {
    {"get", Get},
    {"items", Items},
    {"keys", ListFilter},
    {"values", Values},
};

// ---- Functions ----

Value Range(const Value&, const Arguments& args) {
  const bool one = args.positional.size() < 2;
  const int64_t begin = one ? 0 : args.IntegerAt(0, "", 0);
  const int64_t end = args.IntegerAt(one ? 0 : 1, "", 0);
  const int64_t step = args.IntegerAt(2, "", 1);
  if (step == 0) args.budget.Fail("range needs a step that is not zero");
  List list;
  for (__int128 i = begin; step > 0 ? i < end : i > end; i += step) {
    list.emplace_back(static_cast<int64_t>(i));
    args.budget.ChargeItems(list.size());
  }
  return Value::Of(std::move(list));
}

Value MakeNamespace(const Value&, const Arguments& args) {
  auto made = std::make_shared<Namespace>();
  for (const auto& [name, value] : args.named) {
    if (value.name_space() != nullptr) args.budget.Fail("a namespace cannot hold a namespace");
    made->fields.emplace_back(Text(name), value);
  }
  return made;
}

Value MakeDict(const Value&, const Arguments& args) {
  Dict dict;
  for (const auto& [name, value] : args.named) dict.emplace_back(Text(name), value);
  return Value::Of(std::move(dict));
}

Value RaiseException(const Value&, const Arguments& args) {
  const Text message = args.positional.empty() ? Text("no reason given") : ToText(args.positional[0], args.budget);
  throw Error("{} refuses these messages: {}", args.budget.name(), message.str());
}

constexpr Entry<FilterFunction> kFunctions[] = {
    {"dict", MakeDict},
    {"namespace", MakeNamespace},
    {"raise_exception", RaiseException},
    {"range", Range},
};

}  // namespace

void Budget::Charge(uint64_t steps) {
  steps_ += steps;
  if (steps_ > kMaxTemplateSteps) Fail(fmt::format("the template takes more than {} steps", kMaxTemplateSteps));
}

void Budget::ChargeText(size_t bytes) {
  if (bytes > kMaxTemplateOutputBytes) Fail(fmt::format("a text grows beyond {} bytes", kMaxTemplateOutputBytes));
  Charge(bytes / 64);
}

void Budget::ChargeCharacters(size_t bytes) {
  ChargeText(bytes);
  Charge(bytes / 8);
}

void Budget::ChargeCall() { Charge(4); }  // what lies around a call costs several nodes' time

void Budget::ChargeItems(size_t items) {
  if (items > kMaxTemplateItems) Fail(fmt::format("a list grows beyond {} items", kMaxTemplateItems));
  Charge(1);
}

void Budget::Fail(std::string_view message) const { jinja::Fail(name_, at, message); }

const Value* Arguments::Find(size_t index, std::string_view keyword) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [name, value] : named) {
    if (!keyword.empty() && name == keyword) return &value;
  }
  return nullptr;
}

const Text& Arguments::TextAt(size_t index, std::string_view keyword) const {
  const Value* value = Find(index, keyword);
  if (value == nullptr || value->text() == nullptr) {
    budget.Fail(
        fmt::format("{} needs a string here, not {}", function, value == nullptr ? "nothing" : value->KindName()));
  }
  return *value->text();
}

int64_t Arguments::IntegerAt(size_t index, std::string_view keyword, int64_t fallback) const {
  const Value* value = Find(index, keyword);
  int64_t integer = fallback;
  if (value != nullptr && !AsInteger(*value, integer)) {
    budget.Fail(fmt::format("{} needs an integer here, not {}", function, value->KindName()));
  }
  return integer;
}

bool Arguments::TruthAt(size_t index, std::string_view keyword) const {
  const Value* value = Find(index, keyword);
  return value != nullptr && value->Truth();
}

FilterFunction FindFilter(std::string_view name) { return FindIn<FilterFunction>(kFilters, name); }
TestFunction FindTest(std::string_view name) { return FindIn<TestFunction>(kTests, name); }
FilterFunction FindFunction(std::string_view name) { return FindIn<FilterFunction>(kFunctions, name); }
FilterFunction FindMethod(const Value& of, std::string_view name) {
  if (of.text() != nullptr) return FindIn<FilterFunction>(kTextMethods, name);
  return of.dict() != nullptr ? FindIn<FilterFunction>(kDictMethods, name) : nullptr;
}
std::string FilterNames() { return NamesOf<FilterFunction>(kFilters); }
std::string TestNames() { return NamesOf<TestFunction>(kTests); }

}  // namespace thermocline::jinja
