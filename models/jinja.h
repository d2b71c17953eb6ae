// An interpreter for the part of Jinja that chat templates use, with the settings of Hugging Face `transformers`
// (trim_blocks, lstrip_blocks, an immutable sandbox, break and continue).
//
// Statements: for (with if, else, unpacking, loop.*), if/elif/else, set (also of namespace fields and as a block),
// macro, break, continue, generation (its body only), raw, comments. Expressions: all operators, slices, the
// conditional, filters, tests, string and dictionary methods: see jinja_builtins.cc for the names. Anything else is an
// error with line and column. Tuples are lists here, and case changes map one character to one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/jinja_value.h"

namespace thermocline::jinja {

struct Position {
  int line = 1, column = 1;  // column counts characters
};

enum class TokenKind : uint8_t {
  kData,         // text outside of tags, whitespace control already applied
  kOutputBegin,  // {{
  kOutputEnd,
  kBlockBegin,  // {%
  kBlockEnd,
  kName,
  kString,  // escapes resolved
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  Position at;
};

// Throws Error naming the template `name`, line and column.
std::vector<Token> Lex(std::string_view source, std::string_view name);
[[noreturn]] void Fail(std::string_view name, Position at, std::string_view message);

enum class NodeKind : uint8_t {
  // Statements; `body` is a kBlock.
  kBlock,     // children
  kData,      // text
  kOutput,    // a
  kIf,        // a, body, other (else or elif; may be null)
  kFor,       // names, a (iterable), b (condition; may be null), body, other (else; may be null)
  kSet,       // names, a;  names = {"ns"}, field = "x" for ns.x
  kSetBlock,  // names, body
  kMacro,     // text = name, names = parameters, children = defaults of the last parameters, body
  kBreak,
  kContinue,
  // Expressions.
  kLiteral,    // value
  kName,       // text
  kList,       // children
  kDict,       // children: key, value, key, value, ...
  kAttribute,  // a, text
  kIndex,      // a, b
  kSlice,      // a, children = begin, end, step (null: left out)
  kCall,       // a, arguments
  kFilter,     // a, text, arguments
  kTest,       // a, text, arguments; negated
  kNot,
  kNegate,
  kPlus,  // a
  kAnd,
  kOr,           // a, b
  kBinary,       // a, text = operator, b
  kCompare,      // a, then children with their operators in names ("==", "in", "not in", ...)
  kConditional,  // a if b else other (may be null)
};

struct Node {
  NodeKind kind;
  Position at;
  int depth = 1;  // levels of nodes below and including this one
  std::string text, field;
  std::vector<std::string> names;
  Value value;
  bool negated = false;
  std::unique_ptr<Node> a, b, body, other;
  std::vector<std::unique_ptr<Node>> children;
  std::vector<std::pair<std::string, std::unique_ptr<Node>>> keywords;  // named arguments
};

class Template {
 public:
  // Throws Error with the template's name, line and column for what is not in the supported part.
  Template(std::string_view source, std::string_view name);

  // Throws Error when the template raises, does what has no meaning, or exceeds a limit of limits.h.
  Text Render(Dict variables) const;

 private:
  std::string name_;
  std::unique_ptr<Node> root_;
};

}  // namespace thermocline::jinja
