// Chat templates: a conversation -> the prompt a model was trained on. The language is in jinja.h.
//
// The output remembers which characters the template wrote and which came from messages, so that text of a message
// never becomes a control token.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/tokenizer.h"

namespace thermocline {

class GgufFile;
namespace jinja {
class Template;
}

struct Message {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class ChatTemplate {
 public:
  // `which`: "" for the model's own tokenizer.chat_template, "chatml", "gemma", or the path of a Jinja file.
  // Throws Error when the model has none and `which` is empty (saying what to do), when a file cannot be read, and for
  // syntax beyond the supported part, with line and column. `bos`/`eos` are the template's bos_token/eos_token.
  static ChatTemplate Load(const GgufFile& file, const Tokenizer& tokenizer, std::string_view which);
  static ChatTemplate Parse(std::string_view source, std::string_view bos, std::string_view eos, std::string_view name);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Throws Error when the template raises (raise_exception) or exceeds its limits of steps, depth or output bytes.
  // Invalid UTF-8 in messages becomes U+FFFD; `replaced`, if given, counts it. Neighbouring pieces differ in `special`.
  std::vector<TextPiece> Render(const std::vector<Message>& messages, bool add_generation_prompt,
                                size_t* replaced = nullptr) const;

 private:
  ChatTemplate();
  std::unique_ptr<const jinja::Template> template_;
  std::string bos_, eos_;
};

}  // namespace thermocline
