// Tokens -> tree, by recursive descent with jinja2's precedences, from loosest to tightest:
//   a if b else c | or | and | not | == != < <= > >= in, not in | + - | ~ | * / // % | ** | unary - + | . [] () |
//   filter, is
#include <algorithm>
#include <charconv>
#include <initializer_list>

#include "models/error.h"
#include "models/jinja.h"
#include "models/limits.h"
#include "models/quoted.h"

namespace thermocline::jinja {
namespace {

using NodePtr = std::unique_ptr<Node>;

class Parser {
 public:
  Parser(std::string_view source, const std::string& name) : name_(name), tokens_(Lex(source, name)) {}

  NodePtr Run() { return Body({}); }

 private:
  const Token& Here() const { return tokens_[next_]; }
  const Token& Take() { return tokens_[next_ + 1 < tokens_.size() ? next_++ : next_]; }
  bool AtOperator(std::string_view text) const { return Here().kind == TokenKind::kOperator && Here().text == text; }
  bool AtName(std::string_view text) const { return Here().kind == TokenKind::kName && Here().text == text; }
  bool TakeOperator(std::string_view text) { return AtOperator(text) && (Take(), true); }
  bool TakeName(std::string_view text) { return AtName(text) && (Take(), true); }

  [[noreturn]] void FailHere(std::string_view message) const { Fail(name_, Here().at, message); }
  [[noreturn]] void FailUnexpected(std::string_view wanted) const {
    static constexpr std::string_view kKinds[] = {"text",     "{{", "}}", "{%", "%}",     "",
                                                  "a string", "",   "",   "",   "the end"};
    const Token& token = Here();
    const std::string_view kind = kKinds[static_cast<size_t>(token.kind)];
    FailHere(fmt::format("{} is expected, not {}", wanted, kind.empty() ? Quoted(token.text) : std::string(kind)));
  }
  void Expect(std::string_view op) {
    if (!TakeOperator(op)) FailUnexpected(op);
  }
  std::string ExpectName(std::string_view wanted) {
    if (Here().kind != TokenKind::kName) FailUnexpected(wanted);
    return Take().text;
  }
  void ExpectBlockEnd() {
    if (Here().kind != TokenKind::kBlockEnd) FailUnexpected("%}");
    Take();
  }

  // Bounds the recursion of this parser; Finish bounds that of whoever walks the tree.
  struct Level {
    explicit Level(Parser& parser) : parser(parser) {
      if (++parser.level_ > kMaxTemplateDepth) parser.FailHere("the template is nested too deeply");
    }
    ~Level() { --parser.level_; }
    Parser& parser;
  };

  static NodePtr New(NodeKind kind, Position at) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->at = at;
    return node;
  }

  // Called when a node has all its children.
  NodePtr Finish(NodePtr node) const {
    int below = 0;
    const auto see = [&](const NodePtr& child) {
      if (child != nullptr) below = std::max(below, child->depth);
    };
    for (const NodePtr* child : {&node->a, &node->b, &node->body, &node->other}) see(*child);
    for (const NodePtr& child : node->children) see(child);
    for (const auto& [keyword, child] : node->keywords) see(child);
    node->depth = below + 1;
    if (node->depth > kMaxTemplateDepth) Fail(name_, node->at, "the template is nested too deeply");
    return node;
  }

  NodePtr Unary(NodeKind kind, Position at, NodePtr a) const {
    NodePtr node = New(kind, at);
    node->a = std::move(a);
    return Finish(std::move(node));
  }
  NodePtr Binary(NodeKind kind, Position at, std::string op, NodePtr a, NodePtr b) const {
    NodePtr node = New(kind, at);
    node->text = std::move(op);
    node->a = std::move(a);
    node->b = std::move(b);
    return Finish(std::move(node));
  }

  // ---- Statements ----

  // Everything up to a tag whose name is among `ends`; that name is left to be taken, its {% is not.
  NodePtr Body(std::initializer_list<std::string_view> ends) {
    const Level level(*this);
    NodePtr block = New(NodeKind::kBlock, Here().at);
    while (Here().kind != TokenKind::kEnd) {
      const Token& token = Take();
      if (token.kind == TokenKind::kData) {
        NodePtr data = New(NodeKind::kData, token.at);
        data->text = token.text;
        block->children.push_back(std::move(data));
      } else if (token.kind == TokenKind::kOutputBegin) {
        block->children.push_back(Unary(NodeKind::kOutput, token.at, Expression()));
        if (Here().kind != TokenKind::kOutputEnd) FailUnexpected("}}");
        Take();
      } else {
        if (Here().kind != TokenKind::kName) FailUnexpected("the name of a tag");
        if (std::ranges::find(ends, Here().text) != ends.end()) return Finish(std::move(block));
        block->children.push_back(Statement());
      }
    }
    if (ends.size() > 0) FailHere(fmt::format("the template ends where {{% {} %}} is expected", *(ends.end() - 1)));
    return Finish(std::move(block));
  }

  NodePtr Statement() {
    const Position at = Here().at;
    const std::string tag = Take().text;
    if (tag == "if") return If(at);
    if (tag == "for") return For(at);
    if (tag == "set") return Set(at);
    if (tag == "macro") return Macro(at);
    if (tag == "generation") {  // transformers marks the assistant's text with it; only the body counts here
      ExpectBlockEnd();
      NodePtr body = Body({"endgeneration"});
      EndTag();
      return body;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) Fail(name_, at, fmt::format("{} outside of a loop", tag));
      ExpectBlockEnd();
      return New(tag == "break" ? NodeKind::kBreak : NodeKind::kContinue, at);
    }
    Fail(name_, at,
         fmt::format("unknown or misplaced tag {}; known are if, for, set, macro, break, continue, generation, raw",
                     Quoted(tag)));
  }

  void EndTag() {
    Take();
    ExpectBlockEnd();
  }

  NodePtr If(Position at) {
    const Level level(*this);
    NodePtr node = New(NodeKind::kIf, at);
    node->a = Expression();
    ExpectBlockEnd();
    node->body = Body({"elif", "else", "endif"});
    const Position next = Here().at;
    if (TakeName("elif")) {
      node->other = If(next);
    } else if (TakeName("else")) {
      ExpectBlockEnd();
      node->other = Body({"endif"});
      EndTag();
    } else {
      EndTag();
    }
    return Finish(std::move(node));
  }

  std::vector<std::string> Targets() {
    std::vector<std::string> names{ExpectName("a name")};
    while (TakeOperator(",")) names.push_back(ExpectName("a name"));
    return names;
  }

  NodePtr For(Position at) {
    NodePtr node = New(NodeKind::kFor, at);
    node->names = Targets();
    if (!TakeName("in")) FailUnexpected("in");
    node->a = Or();  // no conditional: `if` filters
    if (TakeName("if")) node->b = Expression();
    if (AtName("recursive")) FailHere("recursive loops are not supported");
    ExpectBlockEnd();
    ++loops_;
    node->body = Body({"else", "endfor"});
    --loops_;
    if (TakeName("else")) {
      ExpectBlockEnd();
      node->other = Body({"endfor"});
    }
    EndTag();
    return Finish(std::move(node));
  }

  NodePtr Set(Position at) {
    NodePtr node = New(NodeKind::kSet, at);
    node->names = Targets();
    if (node->names.size() == 1 && TakeOperator(".")) node->field = ExpectName("the name of a field");
    if (TakeOperator("=")) {
      node->a = Tuple();
      ExpectBlockEnd();
      return Finish(std::move(node));
    }
    if (node->names.size() > 1 || !node->field.empty()) FailUnexpected("=");
    node->kind = NodeKind::kSetBlock;
    ExpectBlockEnd();
    node->body = Body({"endset"});
    EndTag();
    return Finish(std::move(node));
  }

  NodePtr Macro(Position at) {
    NodePtr node = New(NodeKind::kMacro, at);
    node->text = ExpectName("the name of the macro");
    Expect("(");
    while (!AtOperator(")")) {
      node->names.push_back(ExpectName("the name of a parameter"));
      if (TakeOperator("=")) {
        node->children.push_back(Expression());
      } else if (!node->children.empty()) {
        FailHere("a parameter without a default follows one with");
      }
      if (!TakeOperator(",")) break;
    }
    Expect(")");
    ExpectBlockEnd();
    const int outer_loops = std::exchange(loops_, 0);
    node->body = Body({"endmacro"});
    loops_ = outer_loops;
    EndTag();
    return Finish(std::move(node));
  }

  // ---- Expressions ----

  // a, b, c without brackets is a list, as on the right of set.
  NodePtr Tuple() {
    const Position at = Here().at;
    NodePtr first = Expression();
    if (!AtOperator(",")) return first;
    NodePtr list = New(NodeKind::kList, at);
    list->children.push_back(std::move(first));
    while (TakeOperator(",")) list->children.push_back(Expression());
    return Finish(std::move(list));
  }

  NodePtr Expression() {
    const Level level(*this);
    NodePtr node = Or();
    while (AtName("if")) {
      NodePtr conditional = New(NodeKind::kConditional, Take().at);
      conditional->a = std::move(node);
      conditional->b = Or();
      if (TakeName("else")) conditional->other = Expression();
      node = Finish(std::move(conditional));
    }
    return node;
  }

  NodePtr Or() {
    NodePtr node = And();
    while (AtName("or")) {
      const Position at = Take().at;
      node = Binary(NodeKind::kOr, at, "or", std::move(node), And());
    }
    return node;
  }

  NodePtr And() {
    NodePtr node = Not();
    while (AtName("and")) {
      const Position at = Take().at;
      node = Binary(NodeKind::kAnd, at, "and", std::move(node), Not());
    }
    return node;
  }

  NodePtr Not() {
    const Level level(*this);
    if (!AtName("not")) return Compare();
    const Position at = Take().at;
    return Unary(NodeKind::kNot, at, Not());
  }

  std::string TakeComparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (TakeOperator(op)) return std::string(op);
    }
    if (TakeName("in")) return "in";
    const bool not_in = AtName("not") && tokens_[next_ + 1].kind == TokenKind::kName && tokens_[next_ + 1].text == "in";
    if (!not_in) return "";
    Take();
    Take();
    return "not in";
  }

  NodePtr Compare() {
    NodePtr node = Sum();
    const Position at = Here().at;
    std::string op = TakeComparison();
    if (op.empty()) return node;
    NodePtr compare = New(NodeKind::kCompare, at);
    compare->a = std::move(node);
    while (!op.empty()) {
      compare->names.push_back(op);
      compare->children.push_back(Sum());
      op = TakeComparison();
    }
    return Finish(std::move(compare));
  }

  // A level of left-associative operators over `next`.
  template <typename Next>
  NodePtr LeftAssociative(std::initializer_list<std::string_view> ops, const Next& next) {
    NodePtr node = next();
    while (Here().kind == TokenKind::kOperator && std::ranges::find(ops, Here().text) != ops.end()) {
      const Token& op = Take();
      node = Binary(NodeKind::kBinary, op.at, op.text, std::move(node), next());
    }
    return node;
  }

  NodePtr Sum() {
    return LeftAssociative({"+", "-"}, [this] { return Concat(); });
  }
  NodePtr Concat() {
    return LeftAssociative({"~"}, [this] { return Product(); });
  }
  NodePtr Product() {
    return LeftAssociative({"*", "/", "//", "%"}, [this] { return Power(); });
  }
  NodePtr Power() {
    return LeftAssociative({"**"}, [this] { return Signed(true); });
  }

  NodePtr Signed(bool with_filters) {
    const Level level(*this);
    NodePtr node;
    const Position at = Here().at;
    if (TakeOperator("-")) {
      node = Unary(NodeKind::kNegate, at, Signed(false));
    } else if (TakeOperator("+")) {
      node = Unary(NodeKind::kPlus, at, Signed(false));
    } else {
      node = Primary();
    }
    node = Postfix(std::move(node));
    return with_filters ? Filters(std::move(node)) : std::move(node);
  }

  NodePtr Primary() {
    const Token& token = Here();
    switch (token.kind) {
      case TokenKind::kName: return Name();
      case TokenKind::kString: {
        std::string text;  // neighbouring strings are one
        while (Here().kind == TokenKind::kString) text += Take().text;
        return Literal(token.at, Text(text));
      }
      case TokenKind::kInteger: {
        int64_t number = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        if (error != std::errc()) FailHere("the number is too large");
        Take();
        return Literal(token.at, Value(number));
      }
      case TokenKind::kFloat: {
        double number = 0;
        const auto [end, error] = std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
        if (error != std::errc()) FailHere("the number is too large");
        Take();
        return Literal(token.at, Value(number));
      }
      default: break;
    }
    const Position at = token.at;
    if (TakeOperator("(")) return Parenthesis(at);
    if (TakeOperator("[")) {
      NodePtr list = New(NodeKind::kList, at);
      Items(*list, "]");
      return Finish(std::move(list));
    }
    if (TakeOperator("{")) return DictLiteral(at);
    FailUnexpected("an expression");
  }

  NodePtr Literal(Position at, Value value) const {
    NodePtr node = New(NodeKind::kLiteral, at);
    node->value = std::move(value);
    return node;
  }

  NodePtr Name() {
    const Token& token = Take();
    if (token.text == "true" || token.text == "True") return Literal(token.at, Value(true));
    if (token.text == "false" || token.text == "False") return Literal(token.at, Value(false));
    if (token.text == "none" || token.text == "None") return Literal(token.at, None{});
    NodePtr node = New(NodeKind::kName, token.at);
    node->text = token.text;
    return node;
  }

  // (a) is a; (a,) and (a, b) are lists.
  NodePtr Parenthesis(Position at) {
    if (TakeOperator(")")) return Finish(New(NodeKind::kList, at));
    NodePtr first = Expression();
    if (TakeOperator(")")) return first;
    Expect(",");
    NodePtr list = New(NodeKind::kList, at);
    list->children.push_back(std::move(first));
    Items(*list, ")");
    return Finish(std::move(list));
  }

  void Items(Node& list, std::string_view close) {
    while (!AtOperator(close)) {
      list.children.push_back(Expression());
      if (!TakeOperator(",")) break;
    }
    Expect(close);
  }

  NodePtr DictLiteral(Position at) {
    NodePtr dict = New(NodeKind::kDict, at);
    while (!AtOperator("}")) {
      dict->children.push_back(Expression());
      Expect(":");
      dict->children.push_back(Expression());
      if (!TakeOperator(",")) break;
    }
    Expect("}");
    return Finish(std::move(dict));
  }

  NodePtr Postfix(NodePtr node) {
    while (true) {
      const Position at = Here().at;
      if (TakeOperator(".")) {
        node = Unary(NodeKind::kAttribute, at, std::move(node));
        node->text = ExpectName("the name of an attribute");
      } else if (TakeOperator("[")) {
        node = Subscript(at, std::move(node));
      } else if (AtOperator("(")) {
        NodePtr call = New(NodeKind::kCall, at);
        call->a = std::move(node);
        Arguments(*call);
        node = Finish(std::move(call));
      } else {
        return node;
      }
    }
  }

  NodePtr Subscript(Position at, NodePtr of) {
    NodePtr parts[3];
    size_t part = 0;
    bool is_slice = false;
    while (!AtOperator("]")) {
      if (TakeOperator(":")) {
        is_slice = true;
        if (++part > 2) FailHere("a slice has at most three parts");
      } else {
        if (parts[part] != nullptr) FailUnexpected("]");
        parts[part] = Expression();
      }
    }
    Expect("]");
    if (!is_slice) {
      if (parts[0] == nullptr) Fail(name_, at, "the index is missing");
      return Binary(NodeKind::kIndex, at, "", std::move(of), std::move(parts[0]));
    }
    NodePtr slice = New(NodeKind::kSlice, at);
    slice->a = std::move(of);
    for (NodePtr& bound : parts) slice->children.push_back(std::move(bound));
    return Finish(std::move(slice));
  }

  void Arguments(Node& node) {
    Expect("(");
    while (!AtOperator(")")) {
      const Token& next = tokens_[std::min(next_ + 1, tokens_.size() - 1)];
      if (Here().kind == TokenKind::kName && next.kind == TokenKind::kOperator && next.text == "=") {
        std::string name = Take().text;
        Take();
        node.keywords.emplace_back(std::move(name), Expression());
      } else {
        if (!node.keywords.empty()) FailHere("an argument without a name follows one with");
        node.children.push_back(Expression());
      }
      if (!TakeOperator(",")) break;
    }
    Expect(")");
  }

  NodePtr Filters(NodePtr node) {
    while (true) {
      const Position at = Here().at;
      if (TakeOperator("|")) {
        NodePtr filter = New(NodeKind::kFilter, at);
        filter->text = ExpectName("the name of a filter");
        filter->a = std::move(node);
        if (AtOperator("(")) Arguments(*filter);
        node = Finish(std::move(filter));
      } else if (TakeName("is")) {
        node = Test(at, std::move(node));
      } else if (AtOperator("(")) {
        node = Postfix(std::move(node));
      } else {
        return node;
      }
    }
  }

  NodePtr Test(Position at, NodePtr of) {
    NodePtr test = New(NodeKind::kTest, at);
    test->negated = TakeName("not");
    test->text = ExpectName("the name of a test");
    test->a = std::move(of);
    const bool ends = AtName("else") || AtName("or") || AtName("and") || AtName("if") || AtName("is") ||
                      AtName("not") || AtName("in");
    if (AtOperator("(")) {
      Arguments(*test);
    } else if (!ends && (Here().kind == TokenKind::kName || Here().kind == TokenKind::kString ||
                         Here().kind == TokenKind::kInteger || Here().kind == TokenKind::kFloat || AtOperator("["))) {
      test->children.push_back(Postfix(Primary()));
    }
    return Finish(std::move(test));
  }

  const std::string& name_;
  std::vector<Token> tokens_;
  size_t next_ = 0;
  int level_ = 0;
  int loops_ = 0;  // around here
};

}  // namespace

Template::Template(std::string_view source, std::string_view name) : name_(name), root_(Parser(source, name_).Run()) {}

}  // namespace thermocline::jinja
