// Templates against what transformers' Jinja environment makes of them (tests/data/chat_template/make_expected.py).
#include <doctest/doctest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "models/chat_template.h"
#include "models/error.h"

namespace thermocline {
namespace {

using Json = nlohmann::json;

TEST_CASE("chat template: transformers renders the same, or refuses too") {
  std::ifstream file(THERMOCLINE_TEST_DATA "/chat_template/expected.json");
  const Json data = Json::parse(file);
  const std::string bos = data["bos"], eos = data["eos"];
  size_t n = 0;
  for (const Json& expected : data["cases"]) {
    const std::string name = expected["name"], source = expected["template"];
    CAPTURE(name);
    std::vector<Message> messages;
    for (const Json& message : expected["messages"]) messages.push_back({message["role"], message["content"]});
    CAPTURE(messages.size());
    std::string text, error;
    try {
      const auto parsed = ChatTemplate::Parse(source, bos, eos, "the template");
      for (const TextPiece& piece : parsed.Render(messages, expected["add_generation_prompt"])) text += piece.text;
    } catch (const Error& caught) {
      error = caught.what();
    }
    CAPTURE(error);
    if (expected.contains("error")) {
      CHECK_FALSE(error.empty());
    } else {
      CHECK(error.empty());
      CHECK(text == expected["text"].get<std::string>());
    }
    ++n;
  }
  CHECK(n >= 200);
}

}  // namespace
}  // namespace thermocline
