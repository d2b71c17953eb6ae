// Values of the template language. A text remembers, character by character, whether a message wrote it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace thermocline::jinja {

struct Node;

// UTF-8 in runs of one origin.
class Text {
 public:
  struct Run {
    size_t end;         // in bytes
    bool from_message;  // neighbours differ
  };

  Text() = default;
  explicit Text(std::string_view text, bool from_message = false) { Append(text, from_message); }

  const std::string& str() const { return str_; }
  const std::vector<Run>& runs() const { return runs_; }
  size_t size() const { return str_.size(); }
  bool FromMessage(size_t pos) const;  // of the byte at pos < size()

  void Append(std::string_view text, bool from_message);
  void Append(const Text& text);
  void AppendSlice(const Text& text, size_t begin, size_t end);  // bytes
  Text Slice(size_t begin, size_t end) const;

 private:
  std::string str_;
  std::vector<Run> runs_;
};

class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<Text, Value>>;  // in the order of insertion

struct Undefined {
  std::string name;  // for errors
};
struct None {};

// The only value that can be changed, and never a part of another, so that no cycles arise.
struct Namespace {
  Dict fields;
};

struct Function {
  std::string_view name;        // of a built-in function, or of the macro
  const Node* macro = nullptr;  // belongs to the template
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(None none) : data_(none) {}
  explicit Value(bool value) : data_(value) {}
  explicit Value(int64_t value) : data_(value) {}
  explicit Value(double value) : data_(value) {}
  Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  Value(Function function) : data_(function) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  // Throws std::length_error beyond kMaxTemplateValueDepth levels of nesting.
  static Value Of(List list);
  static Value Of(Dict dict);

  // nullptr when it is of another kind.
  const Undefined* undefined() const { return std::get_if<Undefined>(&data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const Text* text() const { return Pointee<std::shared_ptr<const Text>>(); }
  const List* list() const { return Pointee<std::shared_ptr<const List>>(); }
  const Dict* dict() const { return Pointee<std::shared_ptr<const Dict>>(); }
  Namespace* name_space() const { return Pointee<std::shared_ptr<Namespace>>(); }
  const Function* function() const { return std::get_if<Function>(&data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }

  bool Truth() const;
  std::string_view KindName() const;  // "a string", "a list", ...

 private:
  template <typename Pointer>
  auto Pointee() const -> decltype(std::declval<Pointer>().get()) {
    const auto* pointer = std::get_if<Pointer>(&data_);
    return pointer == nullptr ? nullptr : pointer->get();
  }

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>, Function>
      data_;
  int depth_ = 0;  // levels of nesting
};

// The value as a number when it is an integer, a boolean or a real; false otherwise.
bool AsNumber(const Value& value, double& number);
bool AsInteger(const Value& value, int64_t& number);  // integers and booleans

const Value* FindKey(const Dict& dict, std::string_view key);  // nullptr when absent

}  // namespace thermocline::jinja
