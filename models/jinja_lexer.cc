// Cuts a template into tokens and applies whitespace control, as jinja2 3.1 does with trim_blocks and lstrip_blocks:
//   {%- -%} and the like strip all white space on their side, {%+ +%} keep it
//   without a sign, white space between the beginning of a line and {% or {# goes, and so does one newline after %} or
//   #}
#include <algorithm>

#include "models/error.h"
#include "models/jinja.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "models/unicode.h"

namespace thermocline::jinja {
namespace {

constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                           "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","};

bool IsBlank(char c) { return IsSpace(static_cast<uint8_t>(c)) && static_cast<uint8_t>(c) < 0x80; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// All newlines become \n, and one at the very end goes.
std::string Normalized(std::string_view source) {
  std::string text;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text += source[i];
    } else {
      text += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

class Lexer {
 public:
  Lexer(std::string_view source, std::string_view name) : name_(name) {
    if (source.size() > kMaxTemplateBytes) {
      throw Error("{} has {} bytes; a template may have {}.", name, source.size(), kMaxTemplateBytes);
    }
    size_t replaced = AppendValidUtf8(source, valid_);
    if (replaced > 0) throw Error("{} is not valid UTF-8.", name);
    text_ = Normalized(valid_);
  }

  std::vector<Token> Run() {
    while (pos_ < text_.size()) LexData();
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  bool At(std::string_view what) const { return std::string_view(text_).substr(pos_).starts_with(what); }
  char Here() const { return pos_ < text_.size() ? text_[pos_] : '\0'; }

  // Positions are asked for in order, so counting goes on from the last.
  Position Where(size_t pos) {
    for (; counted_ < pos; ++counted_) {
      if (text_[counted_] == '\n') {
        ++here_.line;
        here_.column = 1;
      } else if ((static_cast<uint8_t>(text_[counted_]) & 0xC0) != 0x80) {
        ++here_.column;
      }
    }
    return here_;
  }
  void Add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), Where(pos_)}); }
  [[noreturn]] void FailHere(std::string_view message) { Fail(name_, Where(pos_), message); }

  // Text up to the next tag, and that tag.
  void LexData() {
    size_t tag = text_.find('{', pos_);
    while (tag < text_.size() &&
           (tag + 1 == text_.size() || std::string_view("{%#").find(text_[tag + 1]) == std::string_view::npos)) {
      tag = text_.find('{', tag + 1);
    }
    if (tag >= text_.size()) {
      Add(TokenKind::kData, text_.substr(pos_));
      pos_ = text_.size();
      return;
    }
    const char kind = text_[tag + 1];
    const char sign = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    AddData(tag, kind, sign);
    pos_ = tag;
    if (kind == '#') return LexComment();
    if (kind == '%' && LexRaw()) return;
    Add(kind == '{' ? TokenKind::kOutputBegin : TokenKind::kBlockBegin, "");
    pos_ += sign == '-' || sign == '+' ? 3 : 2;
    LexExpression(kind == '{' ? "}}" : "%}");
  }

  void AddData(size_t end, char kind, char sign) {
    std::string data = text_.substr(pos_, end - pos_);
    if (sign == '-') {
      while (!data.empty() && IsBlank(data.back())) data.pop_back();
    } else if (sign != '+' && kind != '{') {
      const size_t line = data.rfind('\n') + 1;  // 0: none
      const bool begins_line = line > 0 || pos_ == 0 || text_[pos_ - 1] == '\n';
      if (begins_line && std::all_of(data.begin() + static_cast<std::ptrdiff_t>(line), data.end(), IsBlank))
        data.resize(line);
    }
    if (!data.empty()) Add(TokenKind::kData, std::move(data));
  }

  // After the closing mark of a tag, whose sign stood at text_[pos_].
  void SkipAfter(bool strip, bool keep, bool trims) {
    if (strip) {
      while (pos_ < text_.size() && IsBlank(text_[pos_])) ++pos_;
    } else if (trims && !keep && Here() == '\n') {
      ++pos_;
    }
  }

  void LexComment() {
    const size_t end = text_.find("#}", pos_ + 2);
    if (end == std::string::npos) FailHere("the comment has no end");
    const char sign = text_[end - 1];
    const bool signed_end = end > pos_ + 2;
    pos_ = end + 2;
    SkipAfter(signed_end && sign == '-', signed_end && sign == '+', true);
  }

  // {% raw %} ... {% endraw %}; false when there is none here.
  bool LexRaw() {
    size_t end = 0;
    bool strip = false, keep = false;
    if (!MatchTag(pos_, "raw", end, strip, keep)) return false;
    const size_t opened = pos_;
    pos_ = end;
    SkipAfter(strip, true, false);  // jinja2 keeps the newline after {% raw %}
    for (size_t close = text_.find("{%", pos_); close != std::string::npos; close = text_.find("{%", close + 2)) {
      if (!MatchTag(close, "endraw", end, strip, keep)) continue;
      AddData(close, '%', text_[close + 2]);
      pos_ = end;
      SkipAfter(strip, keep, true);
      return true;
    }
    pos_ = opened;
    FailHere("{% raw %} has no {% endraw %}");
  }

  bool MatchTag(size_t at, std::string_view word, size_t& end, bool& strip, bool& keep) const {
    size_t i = at + 2;
    const auto skip = [&] {
      while (i < text_.size() && IsBlank(text_[i])) ++i;
    };
    if (i < text_.size() && (text_[i] == '-' || text_[i] == '+')) ++i;
    skip();
    if (text_.compare(i, word.size(), word) != 0) return false;
    i += word.size();
    skip();
    strip = i < text_.size() && text_[i] == '-';
    keep = i < text_.size() && text_[i] == '+';
    if (strip || keep) ++i;
    end = i + 2;
    return text_.compare(i, 2, "%}") == 0;
  }

  void LexExpression(std::string_view closing) {
    int open = 0;  // brackets: }} may close two dictionaries
    while (true) {
      while (IsBlank(Here())) ++pos_;
      if (pos_ >= text_.size()) FailHere(fmt::format("the template ends where {} is expected", closing));
      const bool is_sign = Here() == '-' || Here() == '+';
      if (open == 0 && std::string_view(text_).substr(pos_ + (is_sign ? 1 : 0)).starts_with(closing)) {
        const char sign = is_sign ? Here() : '\0';
        Add(closing == "}}" ? TokenKind::kOutputEnd : TokenKind::kBlockEnd, "");
        pos_ += closing.size() + (is_sign ? 1 : 0);
        SkipAfter(sign == '-', sign == '+', closing == "%}");
        return;
      }
      LexOne(open);
    }
  }

  void LexOne(int& open) {
    const char c = Here();
    if (c == '\'' || c == '"') return LexString(c);
    if (IsDigit(c)) return LexNumber();
    if (IsNameStart(c)) {
      size_t end = pos_;
      while (end < text_.size() && (IsNameStart(text_[end]) || IsDigit(text_[end]))) ++end;
      Add(TokenKind::kName, text_.substr(pos_, end - pos_));
      pos_ = end;
      return;
    }
    for (const std::string_view op : kOperators) {
      if (!At(op)) continue;
      if (op == "(" || op == "[" || op == "{") ++open;
      if ((op == ")" || op == "]" || op == "}") && open > 0) --open;
      Add(TokenKind::kOperator, std::string(op));
      pos_ += op.size();
      return;
    }
    const Utf8Char unknown = DecodeUtf8(text_, pos_);
    FailHere(fmt::format("unexpected character {}",
                         Quoted(std::string_view(text_).substr(pos_, static_cast<size_t>(unknown.bytes)))));
  }

  void LexNumber() {
    size_t end = pos_;
    const auto digits = [&] {
      while (end < text_.size() && (IsDigit(text_[end]) || text_[end] == '_')) ++end;
    };
    digits();
    const bool is_float = end + 1 < text_.size() && text_[end] == '.' && IsDigit(text_[end + 1]);
    if (is_float) {
      ++end;
      digits();
    }
    std::string number = text_.substr(pos_, end - pos_);
    std::erase(number, '_');
    Add(is_float ? TokenKind::kFloat : TokenKind::kInteger, std::move(number));
    pos_ = end;
  }

  void LexString(char quote) {
    std::string value;
    size_t i = pos_ + 1;
    while (i < text_.size() && text_[i] != quote) {
      if (text_[i] == '\\' && i + 1 < text_.size()) {
        i = Escape(i + 1, value);
      } else {
        value += text_[i++];
      }
    }
    if (i >= text_.size()) FailHere("the string has no end");
    Add(TokenKind::kString, std::move(value));
    pos_ = i + 1;
  }

  // text_[i] is what follows the backslash; returns where the escape ends.
  size_t Escape(size_t i, std::string& value) {
    const char c = text_[i];
    constexpr std::string_view kFrom = "ntrabfv\\'\"", kTo = "\n\t\r\a\b\f\v\\'\"";
    if (const size_t at = kFrom.find(c); at != std::string_view::npos) {
      value += kTo[at];
      return i + 1;
    }
    if (c == '\n') return i + 1;  // a line goes on
    const int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits == 0) {
      value += '\\';
      return i;
    }
    char32_t code = 0;
    for (int k = 1; k <= digits; ++k) {
      const size_t at = i + static_cast<size_t>(k);
      const size_t digit = at < text_.size()
                               ? std::string_view("0123456789abcdef").find(static_cast<char>(text_[at] | 0x20))
                               : std::string_view::npos;
      if (digit == std::string_view::npos || (text_[at] < '0'))
        FailHere(fmt::format("the string holds an incomplete \\{}", c));
      code = code << 4 | static_cast<char32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      FailHere("the string holds an escape that is no character");
    AppendUtf8(code, value);
    return i + static_cast<size_t>(digits) + 1;
  }

  std::string name_, valid_, text_;
  size_t pos_ = 0, counted_ = 0;
  Position here_;
  std::vector<Token> tokens_;
};

}  // namespace

void Fail(std::string_view name, Position at, std::string_view message) {
  throw Error("{}, line {}, column {}: {}.", name, at.line, at.column, message);
}

std::vector<Token> Lex(std::string_view source, std::string_view name) { return Lexer(source, name).Run(); }

}  // namespace thermocline::jinja
