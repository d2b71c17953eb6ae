// Walks the tree of a template. Names live in frames: one for the template, one for each loop and macro.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "models/check.h"
#include "models/checked.h"
#include "models/error.h"
#include "models/jinja.h"
#include "models/jinja_builtins.h"
#include "models/limits.h"
#include "models/quoted.h"

namespace thermocline::jinja {
namespace {

enum class Flow { kNext, kBreak, kContinue };

struct Loop {
  const List* items;
  size_t index = 0;
};

struct Frame {
  std::vector<std::pair<std::string, Value>> names;
  Loop* loop = nullptr;
};

class Evaluator {
 public:
  Evaluator(const std::string& name, Dict variables) : budget_(name), frames_(1) {
    for (auto& [key, value] : variables) frames_[0].names.emplace_back(key.str(), std::move(value));
  }

  Text Run(const Node& root) {
    Text out;
    try {
      Execute(root, out);
    } catch (const std::length_error& error) {  // from Value::Of
      budget_.Fail(error.what());
    }
    return out;
  }

 private:
  // ---- Names ----

  const Value* Find(std::string_view name) const {
    for (size_t i = frames_.size(); i-- > 0;) {
      if (i < base_ && i > 0) continue;  // a macro sees the template's names, not its caller's
      for (const auto& [known, value] : frames_[i].names) {
        if (known == name) return &value;
      }
    }
    return nullptr;
  }

  void Assign(const std::string& name, Value value) {
    auto& names = frames_.back().names;
    const auto at = std::ranges::find(names, name, [](const auto& entry) -> const std::string& { return entry.first; });
    if (at != names.end()) {
      at->second = std::move(value);
    } else {
      names.emplace_back(name, std::move(value));
    }
  }

  void AssignAll(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) return Assign(names[0], value);
    const List parts = ToList(value, budget_);
    if (parts.size() != names.size()) {
      budget_.Fail(fmt::format("{} names for {} values", names.size(), parts.size()));
    }
    for (size_t i = 0; i < names.size(); ++i) Assign(names[i], parts[i]);
  }

  const Loop* InnermostLoop() const {
    for (size_t i = frames_.size(); i-- > std::max<size_t>(base_, 1);) {
      if (frames_[i].loop != nullptr) return frames_[i].loop;
    }
    return nullptr;
  }

  // ---- Statements ----

  void Append(const Text& text, Text& out) {
    budget_.ChargeText(text.size());
    if (out.size() + text.size() > kMaxTemplateOutputBytes) budget_.ChargeText(out.size() + text.size());
    out.Append(text);
  }

  Flow Execute(const Node& node, Text& out) {
    budget_.at = node.at;
    budget_.Charge(1);
    switch (node.kind) {
      case NodeKind::kBlock:
        for (const auto& child : node.children) {
          if (const Flow flow = Execute(*child, out); flow != Flow::kNext) return flow;
        }
        return Flow::kNext;
      case NodeKind::kData: Append(Text(node.text), out); return Flow::kNext;
      case NodeKind::kOutput: Append(ToText(Evaluate(*node.a), budget_), out); return Flow::kNext;
      case NodeKind::kIf:
        if (Evaluate(*node.a).Truth()) return Execute(*node.body, out);
        return node.other == nullptr ? Flow::kNext : Execute(*node.other, out);
      case NodeKind::kFor: ExecuteFor(node, out); return Flow::kNext;
      case NodeKind::kSet: ExecuteSet(node); return Flow::kNext;
      case NodeKind::kSetBlock: {
        Text captured;
        const Flow flow = Execute(*node.body, captured);
        Assign(node.names[0], std::move(captured));
        return flow;
      }
      case NodeKind::kMacro: Assign(node.text, Function{node.text, &node}); return Flow::kNext;
      case NodeKind::kBreak: return Flow::kBreak;
      default: CHECK(node.kind == NodeKind::kContinue); return Flow::kContinue;
    }
  }

  void ExecuteSet(const Node& node) {
    Value value = Evaluate(*node.a);
    budget_.at = node.at;
    if (node.field.empty()) return AssignAll(node.names, value);
    const Value* target = Find(node.names[0]);
    if (target == nullptr || target->name_space() == nullptr) {
      budget_.Fail(fmt::format("{} is no namespace, so {} cannot be set", node.names[0], node.field));
    }
    if (value.name_space() != nullptr) budget_.Fail("a namespace cannot hold a namespace");
    Dict& fields = target->name_space()->fields;
    const auto at = std::ranges::find_if(fields, [&](const auto& field) { return field.first.str() == node.field; });
    if (at != fields.end()) {
      at->second = std::move(value);
    } else {
      fields.emplace_back(Text(node.field), std::move(value));
    }
  }

  void ExecuteFor(const Node& node, Text& out) {
    List items = ToList(Evaluate(*node.a), budget_);
    frames_.emplace_back();
    if (node.b != nullptr) {
      List kept;
      for (const Value& item : items) {
        frames_.back().names.clear();
        AssignAll(node.names, item);
        if (Evaluate(*node.b).Truth()) kept.push_back(item);
      }
      items = std::move(kept);
    }
    Loop loop{&items};
    for (; loop.index < items.size(); ++loop.index) {
      frames_.back().names.clear();
      frames_.back().loop = &loop;
      AssignAll(node.names, items[loop.index]);
      if (Execute(*node.body, out) == Flow::kBreak) break;
    }
    frames_.pop_back();
    if (items.empty() && node.other != nullptr) Execute(*node.other, out);
  }

  // ---- Expressions ----

  Value Evaluate(const Node& node) {
    budget_.at = node.at;
    budget_.Charge(1);
    switch (node.kind) {
      case NodeKind::kLiteral: return node.value;
      case NodeKind::kName: {
        if (const Value* value = Find(node.text)) return *value;
        if (FindFunction(node.text) != nullptr) return Function{node.text, nullptr};
        return Undefined{node.text};
      }
      case NodeKind::kList: return EvaluateList(node);
      case NodeKind::kDict: return EvaluateDict(node);
      case NodeKind::kAttribute: return EvaluateAttribute(node);
      case NodeKind::kIndex: return EvaluateIndex(node);
      case NodeKind::kSlice: return EvaluateSlice(node);
      case NodeKind::kCall: return EvaluateCall(node);
      case NodeKind::kFilter: {
        const FilterFunction filter = FindFilter(node.text);
        if (filter == nullptr) {
          budget_.Fail(fmt::format("unknown filter {}; known are {}", Quoted(node.text), FilterNames()));
        }
        const Value value = Evaluate(*node.a);
        return filter(value, EvaluateArguments(node, node.text));
      }
      case NodeKind::kTest: {
        const TestFunction test = FindTest(node.text);
        if (test == nullptr) budget_.Fail(fmt::format("unknown test {}; known are {}", Quoted(node.text), TestNames()));
        const Value value = Evaluate(*node.a);
        return Value(test(value, EvaluateArguments(node, node.text)) != node.negated);
      }
      case NodeKind::kNot: return Value(!Evaluate(*node.a).Truth());
      case NodeKind::kNegate:
      case NodeKind::kPlus: return EvaluateSign(node);
      case NodeKind::kAnd: {
        Value value = Evaluate(*node.a);
        return value.Truth() ? Evaluate(*node.b) : value;
      }
      case NodeKind::kOr: {
        Value value = Evaluate(*node.a);
        return value.Truth() ? value : Evaluate(*node.b);
      }
      case NodeKind::kBinary: return EvaluateBinary(node);
      case NodeKind::kCompare: return EvaluateCompare(node);
      default:
        CHECK(node.kind == NodeKind::kConditional);
        if (Evaluate(*node.b).Truth()) return Evaluate(*node.a);
        return node.other == nullptr ? Value() : Evaluate(*node.other);
    }
  }

  Value EvaluateList(const Node& node) {
    List list;
    for (const auto& child : node.children) list.push_back(Part(*child));
    return Value::Of(std::move(list));
  }

  Value EvaluateDict(const Node& node) {
    Dict dict;
    for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
      const Value key = Evaluate(*node.children[i]);
      if (key.text() == nullptr)
        budget_.Fail(fmt::format("the key of a dictionary is {}, not a string", key.KindName()));
      dict.emplace_back(*key.text(), Part(*node.children[i + 1]));
    }
    return Value::Of(std::move(dict));
  }

  // A value that goes into another.
  Value Part(const Node& node) {
    Value value = Evaluate(node);
    if (value.name_space() != nullptr) budget_.Fail("a namespace cannot be a part of another value");
    return value;
  }

  Value EvaluateAttribute(const Node& node) {
    if (node.a->kind == NodeKind::kName && node.a->text == "loop" && Find("loop") == nullptr) {
      if (const Loop* loop = InnermostLoop()) return LoopField(*loop, node.text);
    }
    const Value value = Evaluate(*node.a);
    budget_.at = node.at;
    return Field(value, node.text, budget_);
  }

  Value LoopField(const Loop& loop, std::string_view name) {
    const auto index = static_cast<int64_t>(loop.index), size = static_cast<int64_t>(loop.items->size());
    if (name == "index") return Value(index + 1);
    if (name == "index0") return Value(index);
    if (name == "revindex") return Value(size - index);
    if (name == "revindex0") return Value(size - index - 1);
    if (name == "first") return Value(index == 0);
    if (name == "last") return Value(index + 1 == size);
    if (name == "length") return Value(size);
    if (name == "previtem") return index == 0 ? Value() : (*loop.items)[loop.index - 1];
    if (name == "nextitem") return index + 1 == size ? Value() : (*loop.items)[loop.index + 1];
    budget_.Fail(fmt::format("loop has no {}", Quoted(name)));
  }

  Value EvaluateIndex(const Node& node) {
    const Value of = Evaluate(*node.a);
    const Value key = Evaluate(*node.b);
    budget_.at = node.at;
    if (key.text() != nullptr) return Field(of, key.text()->str(), budget_);
    int64_t index = 0;
    if (!AsInteger(key, index)) budget_.Fail(fmt::format("{} is no index", key.KindName()));
    if (of.undefined() != nullptr)
      budget_.Fail(fmt::format("{} is undefined, so it has no items", of.undefined()->name));
    if (of.list() == nullptr && of.text() == nullptr) return Value();
    const List items = of.list() != nullptr ? List() : ToList(of, budget_);
    const List& list = of.list() != nullptr ? *of.list() : items;
    const auto size = static_cast<int64_t>(list.size());
    if (index < 0) index += size;
    return index < 0 || index >= size ? Value() : list[static_cast<size_t>(index)];
  }

  // Python's rules: bounds count from the end when negative, and are clamped.
  Value EvaluateSlice(const Node& node) {
    const Value of = Evaluate(*node.a);
    int64_t bounds[3] = {0, 0, 1};
    bool given[3] = {};
    for (size_t i = 0; i < 3; ++i) {
      if (node.children[i] == nullptr) continue;
      const Value bound = Evaluate(*node.children[i]);
      if (bound.is_none()) continue;
      if (!AsInteger(bound, bounds[i])) budget_.Fail(fmt::format("{} is no bound of a slice", bound.KindName()));
      given[i] = true;
    }
    budget_.at = node.at;
    if (of.list() == nullptr && of.text() == nullptr) budget_.Fail(fmt::format("{} cannot be sliced", of.KindName()));
    const List items = ToList(of, budget_);
    const auto size = static_cast<int64_t>(items.size());
    const int64_t step = bounds[2];
    if (step == 0) budget_.Fail("the step of a slice is zero");
    const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
    const auto clamp = [&](size_t i, int64_t otherwise) {
      if (!given[i]) return otherwise;
      return std::clamp(bounds[i] < 0 ? std::max(bounds[i], -size - 1) + size : bounds[i], low, high);
    };
    const int64_t begin = clamp(0, step > 0 ? low : high), end = clamp(1, step > 0 ? high : low);
    List kept;
    Text text;
    for (__int128 i = begin; step > 0 ? i < end : i > end; i += step) {
      const Value& item = items[static_cast<size_t>(i)];
      of.text() != nullptr ? text.Append(*item.text()) : kept.push_back(item);
    }
    if (of.text() != nullptr) return text;
    return Value::Of(std::move(kept));
  }

  Arguments EvaluateArguments(const Node& node, std::string_view function) {
    budget_.ChargeCall();
    Arguments arguments{budget_, function, {}, {}};
    for (const auto& child : node.children) arguments.positional.push_back(Evaluate(*child));
    for (const auto& [keyword, child] : node.keywords) arguments.named.emplace_back(keyword, Evaluate(*child));
    budget_.at = node.at;
    return arguments;
  }

  Value EvaluateCall(const Node& node) {
    if (node.a->kind == NodeKind::kAttribute) return EvaluateMethod(node);
    const Value callee = Evaluate(*node.a);
    if (callee.function() == nullptr) {
      budget_.Fail(callee.undefined() != nullptr
                       ? fmt::format("{} is undefined, so it cannot be called", callee.undefined()->name)
                       : fmt::format("{} cannot be called", callee.KindName()));
    }
    const Function function = *callee.function();
    const Arguments arguments = EvaluateArguments(node, function.name);
    return function.macro != nullptr ? CallMacro(*function.macro, arguments)
                                     : FindFunction(function.name)({}, arguments);
  }

  Value EvaluateMethod(const Node& node) {
    const Node& attribute = *node.a;
    if (attribute.a->kind == NodeKind::kName && attribute.a->text == "loop" && attribute.text == "cycle") {
      const Loop* loop = InnermostLoop();
      const Arguments arguments = EvaluateArguments(node, "loop.cycle");
      if (loop == nullptr || arguments.positional.empty()) budget_.Fail("loop.cycle needs a loop and arguments");
      return arguments.positional[loop->index % arguments.positional.size()];
    }
    const Value of = Evaluate(*attribute.a);
    budget_.at = attribute.at;
    if (of.undefined() != nullptr) Field(of, attribute.text, budget_);  // fails
    const FilterFunction method = FindMethod(of, attribute.text);
    if (method == nullptr) budget_.Fail(fmt::format("{} has no method {}", of.KindName(), Quoted(attribute.text)));
    return method(of, EvaluateArguments(node, attribute.text));
  }

  Value CallMacro(const Node& macro, const Arguments& arguments) {
    if (++calls_ > kMaxTemplateCalls)
      budget_.Fail(fmt::format("macros call each other more than {} deep", kMaxTemplateCalls));
    if (arguments.positional.size() > macro.names.size()) {
      budget_.Fail(fmt::format("the macro {} takes {} arguments", macro.text, macro.names.size()));
    }
    for (const auto& [name, value] : arguments.named) {
      if (std::ranges::find(macro.names, name) == macro.names.end()) {
        budget_.Fail(fmt::format("the macro {} has no parameter {}", macro.text, Quoted(name)));
      }
    }
    const size_t outer_base = std::exchange(base_, frames_.size());
    frames_.emplace_back();
    const size_t first_default = macro.names.size() - macro.children.size();
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const Value* given = arguments.Find(i, macro.names[i]);
      if (given != nullptr) {
        Assign(macro.names[i], *given);
      } else {
        Assign(macro.names[i],
               i < first_default ? Value(Undefined{macro.names[i]}) : Evaluate(*macro.children[i - first_default]));
      }
    }
    Text out;
    Execute(*macro.body, out);
    frames_.pop_back();
    base_ = outer_base;
    --calls_;
    return out;
  }

  Value EvaluateSign(const Node& node) {
    const Value value = Evaluate(*node.a);
    budget_.at = node.at;
    const bool negate = node.kind == NodeKind::kNegate;
    int64_t integer = 0;
    if (AsInteger(value, integer)) {
      if (negate && integer == INT64_MIN) budget_.Fail("the number is too large");
      return Value(negate ? -integer : integer);
    }
    if (value.real() == nullptr) budget_.Fail(fmt::format("{} has no sign", value.KindName()));
    return Value(negate ? -*value.real() : *value.real());
  }

  Value EvaluateBinary(const Node& node) {
    const Value a = Evaluate(*node.a);
    const Value b = Evaluate(*node.b);
    budget_.at = node.at;
    const std::string& op = node.text;
    if (op == "~") return Joined(ToText(a, budget_), ToText(b, budget_));
    if (op == "+" && a.text() != nullptr && b.text() != nullptr) return Joined(*a.text(), *b.text());
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      budget_.ChargeItems(a.list()->size() + b.list()->size());
      budget_.Charge(a.list()->size() + b.list()->size());
      List list = *a.list();
      list.insert(list.end(), b.list()->begin(), b.list()->end());
      return Value::Of(std::move(list));
    }
    int64_t i = 0, j = 0;
    if (op == "*" && a.text() != nullptr && AsInteger(b, j)) return Repeated(*a.text(), j);
    if (AsInteger(a, i) && AsInteger(b, j) && op != "/") return IntegerOperation(op, i, j);
    double x = 0, y = 0;
    if (AsNumber(a, x) && AsNumber(b, y)) return RealOperation(op, x, y);
    const Value& culprit = a.undefined() != nullptr ? a : b;
    if (culprit.undefined() != nullptr) {
      budget_.Fail(fmt::format("{} is undefined, so {} cannot be applied", culprit.undefined()->name, op));
    }
    budget_.Fail(fmt::format("{} cannot be applied to {} and {}", op, a.KindName(), b.KindName()));
  }

  Value Joined(Text left, const Text& right) {
    budget_.ChargeText(left.size() + right.size());
    left.Append(right);
    return left;
  }

  Value Repeated(const Text& text, int64_t times) {
    Text repeated;
    if (text.size() == 0 || times <= 0) return repeated;
    const auto bytes = CheckedMul(text.size(), static_cast<size_t>(times));
    budget_.ChargeText(bytes.value_or(SIZE_MAX));
    budget_.Charge(static_cast<uint64_t>(times));
    for (int64_t i = 0; i < times; ++i) repeated.Append(text);
    return repeated;
  }

  Value IntegerOperation(const std::string& op, int64_t a, int64_t b) {
    std::optional<int64_t> result;
    if (op == "+") result = CheckedAdd(a, b);
    if (op == "-") {
      int64_t difference = 0;
      if (!__builtin_sub_overflow(a, b, &difference)) result = difference;
    }
    if (op == "*") result = CheckedMul(a, b);
    if (op == "//" || op == "%") {
      if (b == 0) budget_.Fail("division by zero");
      if (b != -1) {                                                                  // INT64_MIN / -1 overflows
        const int64_t quotient = a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);  // rounds down
        result = op == "//" ? quotient : a - quotient * b;
      } else if (op == "%") {
        result = 0;
      } else if (a != INT64_MIN) {
        result = -a;
      }
    }
    if (op == "**") return RealOrIntegerPower(a, b);
    if (!result) budget_.Fail("the number is too large");
    return Value(*result);
  }

  Value RealOrIntegerPower(int64_t a, int64_t b) {
    if (b < 0) return RealOperation("**", static_cast<double>(a), static_cast<double>(b));
    std::optional<int64_t> result = 1;
    for (int64_t i = 0; i < std::min<int64_t>(b, 64) && result; ++i) result = CheckedMul(*result, a);
    if (b > 64 && a != 0 && a != 1 && a != -1) result.reset();
    if (!result) budget_.Fail("the number is too large");
    return Value(b > 64 && a == -1 && b % 2 != 0 ? int64_t{-1} : *result);
  }

  Value RealOperation(const std::string& op, double a, double b) {
    if ((op == "/" || op == "//" || op == "%") && b == 0) budget_.Fail("division by zero");
    if (op == "+") return Value(a + b);
    if (op == "-") return Value(a - b);
    if (op == "*") return Value(a * b);
    if (op == "/") return Value(a / b);
    if (op == "//") return Value(std::floor(a / b));
    if (op == "%") return Value(a - b * std::floor(a / b));
    return Value(std::pow(a, b));
  }

  Value EvaluateCompare(const Node& node) {
    Value left = Evaluate(*node.a);
    for (size_t i = 0; i < node.children.size(); ++i) {
      Value right = Evaluate(*node.children[i]);
      budget_.at = node.at;
      if (!Compare(node.names[i], left, right)) return Value(false);
      left = std::move(right);
    }
    return Value(true);
  }

  bool Compare(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return Equal(a, b, budget_);
    if (op == "!=") return !Equal(a, b, budget_);
    if (op == "in") return Contains(b, a, budget_);
    if (op == "not in") return !Contains(b, a, budget_);
    double x = 0, y = 0;
    if (a.text() != nullptr && b.text() != nullptr) {
      const int order = a.text()->str().compare(b.text()->str());  // UTF-8 sorts as its characters do
      return Ordered(op, order, 0);
    }
    if (!AsNumber(a, x) || !AsNumber(b, y)) {
      budget_.Fail(fmt::format("{} cannot be applied to {} and {}", op, a.KindName(), b.KindName()));
    }
    return Ordered(op, x, y);
  }

  template <typename T>
  static bool Ordered(const std::string& op, T a, T b) {
    return op == "<" ? a < b : op == "<=" ? a <= b : op == ">" ? a > b : a >= b;
  }

  Budget budget_;
  std::vector<Frame> frames_;
  size_t base_ = 0;  // frames below are hidden, but for the first
  int calls_ = 0;
};

}  // namespace

Text Template::Render(Dict variables) const { return Evaluator(name_, std::move(variables)).Run(*root_); }

}  // namespace thermocline::jinja
