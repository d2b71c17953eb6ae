#include "models/chat_template.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "models/error.h"
#include "models/gguf.h"
#include "models/jinja.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "models/unicode.h"

namespace thermocline {
namespace {

// The two formats, in our words: <|im_start|>role\ncontent<|im_end|>\n, and <start_of_turn>role\ncontent<end_of_turn>\n
// with the system's text in front of the first user's and the assistant called model.
constexpr std::string_view kChatml = R"({% for message in messages %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})";

constexpr std::string_view kGemma = R"({{ bos_token -}}
{% set ns = namespace(system='', expected='user') %}
{% for message in messages %}
  {% if loop.first and message.role == 'system' %}
    {% set ns.system = message.content | trim + '\n\n' %}
  {% else %}
    {% if message.role != ns.expected %}
      {{- raise_exception('turns must alternate between user and assistant, after at most one system message') }}
    {% endif %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' -}}
    {{- ns.system + message.content | trim + '<end_of_turn>\n' -}}
    {% set ns.system = '' %}
    {% set ns.expected = 'assistant' if message.role == 'user' else 'user' %}
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %})";

constexpr std::pair<std::string_view, std::string_view> kNamed[] = {{"chatml", kChatml}, {"gemma", kGemma}};

std::string ReadFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text;
  if (file) {
    text.assign(kMaxTemplateBytes + 1, '\0');  // one more, so that the lexer sees it is too long
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
  }
  if (!file.eof() && text.size() <= kMaxTemplateBytes) {
    throw Error("The chat template {} cannot be read: {}. Known names are chatml, gemma.", Quoted(path),
                errno != 0 ? std::strerror(errno) : "it is no file");
  }
  return text;
}

jinja::Text FromMessage(const std::string& text, size_t& replaced) {
  std::string valid;
  replaced += AppendValidUtf8(text, valid);
  return jinja::Text(valid, true);
}

}  // namespace

ChatTemplate::ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

ChatTemplate ChatTemplate::Parse(std::string_view source, std::string_view bos, std::string_view eos,
                                 std::string_view name) {
  ChatTemplate result;
  result.template_ = std::make_unique<const jinja::Template>(source, name);
  result.bos_ = bos;
  result.eos_ = eos;
  return result;
}

ChatTemplate ChatTemplate::Load(const GgufFile& file, const Tokenizer& tokenizer, std::string_view which) {
  const auto text_of = [&](TokenId id) { return id < 0 ? std::string_view() : tokenizer.TokenText(id); };
  const auto parse = [&](std::string_view source, std::string_view name) {
    return Parse(source, text_of(tokenizer.bos()), text_of(tokenizer.eos()), name);
  };
  for (const auto& [name, source] : kNamed) {
    if (which == name) return parse(source, fmt::format("the template {}", name));
  }
  if (!which.empty()) {
    const std::string path(which);
    return parse(ReadFile(path), fmt::format("the template {}", Quoted(path)));
  }
  constexpr std::string_view kKey = "tokenizer.chat_template";
  if (file.Find(kKey) == nullptr) {
    throw Error(
        "{} has no chat template, so how it was taught to chat is unknown. Name one with --template chatml, "
        "--template gemma or --template FILE (a Jinja file), or send the prompt as it is with --raw.",
        file.path());
  }
  return parse(file.GetString(kKey), fmt::format("{}: {}", file.path(), Quoted(kKey)));
}

std::vector<TextPiece> ChatTemplate::Render(const std::vector<Message>& messages, bool add_generation_prompt,
                                            size_t* replaced) const {
  size_t n_replaced = 0;
  jinja::List list;
  for (const Message& message : messages) {
    list.push_back(jinja::Value::Of(jinja::Dict{{jinja::Text("role"), FromMessage(message.role, n_replaced)},
                                                {jinja::Text("content"), FromMessage(message.content, n_replaced)}}));
  }
  if (replaced != nullptr) *replaced = n_replaced;
  // The names that transformers gives its templates.
  const jinja::Text text =
      template_->Render({{jinja::Text("messages"), jinja::Value::Of(std::move(list))},
                         {jinja::Text("tools"), jinja::None{}},
                         {jinja::Text("documents"), jinja::None{}},
                         {jinja::Text("add_generation_prompt"), jinja::Value(add_generation_prompt)},
                         {jinja::Text("bos_token"), jinja::Text(bos_)},
                         {jinja::Text("eos_token"), jinja::Text(eos_)}});
  std::vector<TextPiece> pieces;
  size_t begin = 0;
  for (const auto& run : text.runs()) {
    pieces.push_back({text.str().substr(begin, run.end - begin), !run.from_message});
    begin = run.end;
  }
  return pieces;
}

}  // namespace thermocline
