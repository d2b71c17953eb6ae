#include <nlohmann/json.hpp>

#include "models/chat_template.h"
#include "models/error.h"
#include "models/gguf.h"
#include "models/limits.h"
#include "models/quoted.h"
#include "runtime/commands/commands.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

using Json = nlohmann::json;

Json ParseJson(const std::string& text, const std::string& path) {
  if (text.size() > kMaxMessagesBytes) throw Error("{}: more than {} MiB of messages", path, kMaxMessagesBytes >> 20);
  const auto limit_depth = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kMaxMessagesDepth) throw Error("{}: nested deeper than {} levels", path, kMaxMessagesDepth);
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const Json::parse_error& error) {
    throw Error("{}: not JSON, at byte {}", path, error.byte);
  }
}

// The text of a message: a string, or OpenAI's list of parts of which each is text.
std::string Content(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw Error("{}: \"content\" is neither a string nor a list of parts", where);
  std::string text;
  for (const Json& part : content) {
    const auto value = part.is_object() ? part.find("text") : part.end();
    if (!part.is_object() || value == part.end() || !value->is_string()) {
      throw Error("{}: \"content\" has a part without \"text\"; only text is supported", where);
    }
    text += value->get<std::string>();
  }
  return text;
}

std::vector<Message> ReadMessages(const std::string& path) {
  const Json json = ParseJson(path == "-" ? ReadInput() : ReadText(path), path);
  const Json& list = json.is_object() && json.contains("messages") ? json["messages"] : json;
  if (!list.is_array()) throw Error("{}: not a list of messages, [{{\"role\": ..., \"content\": ...}}, ...]", path);
  if (list.size() > kMaxMessages) throw Error("{}: more than {} messages", path, kMaxMessages);
  std::vector<Message> messages;
  for (const Json& item : list) {
    const std::string where = fmt::format("{}: message {}", path, messages.size() + 1);
    if (!item.is_object()) throw Error("{} is not an object", where);
    const auto role = item.find("role"), content = item.find("content");
    if (role == item.end() || !role->is_string()) throw Error("{} has no \"role\" that is a string", where);
    if (content == item.end()) throw Error("{} has no \"content\"", where);
    messages.push_back({role->get<std::string>(), Content(*content, where)});
  }
  return messages;
}

}  // namespace

int RunTemplate(const Command& command, std::vector<std::string> args) {
  CommandLine line(command);
  std::optional<std::string> path, which;
  bool no_generation_prompt = false;
  line.AddModel();
  line.AddText("--messages", "FILE", &path,
               "Messages as JSON: [{\"role\": \"user\", \"content\": \"...\"}, ...]; - is standard input");
  line.AddText("--template,--chat-template", "NAME", &which,
               "chatml, gemma, or a file, instead of the model's own template");
  line.AddFlag("--no-generation-prompt", &no_generation_prompt,
               "End after the last message, not with the answer's beginning");
  if (!line.Parse(std::move(args))) return kGood;
  if (!path) throw UsageError("--messages is missing");

  const GgufFile file = GgufFile::Open(line.ModelPath());
  const auto tokenizer = Tokenizer::FromGguf(file);
  const auto chat_template = ChatTemplate::Load(file, *tokenizer, which.value_or(""));
  std::string text;
  for (const TextPiece& piece : chat_template.Render(ReadMessages(*path), !no_generation_prompt)) text += piece.text;
  WriteOut(text);
  return kGood;
}

}  // namespace thermocline
