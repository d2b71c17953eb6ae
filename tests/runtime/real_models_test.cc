// The two models people start with, where they are in the cache.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>

#include "models/chat_template.h"
#include "runtime/catalog.h"
#include "runtime/engine.h"
#include "runtime/perplexity.h"

namespace thermocline {
namespace {

std::optional<GgufFile> FromCache(const std::string& file_name) {
  const std::filesystem::path path = ModelDir() / file_name;
  if (!std::filesystem::exists(path)) {
    MESSAGE("SKIPPED: ", file_name, " is not in the cache");
    return std::nullopt;
  }
  return GgufFile::Open(path);
}

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

uint64_t Fnv1a(const std::vector<TokenId>& ids) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const TokenId id : ids)
    for (int byte = 0; byte < 4; ++byte) hash = (hash ^ (id >> 8 * byte & 0xff)) * 0x100000001b3;
  return hash;
}

}  // namespace

TEST_CASE("slow: perplexity agrees with transformers in float32") {
  const std::string folder = THERMOCLINE_TEST_DATA "/perplexity/";
  const nlohmann::json expected = nlohmann::json::parse(ReadText(folder + "expected.json"));
  const std::string text = ReadText(folder + std::string(expected["text"]));
  for (const auto& entry : expected["models"]) {
    CAPTURE(std::string(entry["file"]));
    const std::optional<GgufFile> file = FromCache(entry["file"]);
    if (!file) continue;
    const auto tokenizer = Tokenizer::FromGguf(*file);
    const std::vector<TokenId> ids = tokenizer->Encode(text);
    REQUIRE(fmt::format("{:016x}", Fnv1a(ids)) == std::string(entry["tokens_fnv1a"]));

    // Generated rows agree at every running value; what 8 bits cost prompt rows, or keys and values, is seen in the
    // end.
    struct {
      const char* name;
      RowKind kind;
      KvTypes kv_types;
      double most_off;
    } const cases[] = {{"generated rows", RowKind::kGenerated, {}, 0.0003},
                       {"prompt rows", RowKind::kPrompt, {}, 0.0012},
                       {"prompt rows over Q8_0", RowKind::kPrompt, {DType::kQ8_0, DType::kQ8_0}, 0.0015}};
    for (const auto& [name, kind, kv_types, most_off] : cases) {
      Engine engine(*file, Model::FromGguf(*file), {.n_ctx = expected["ctx"], .kv_types = kv_types});
      const PerplexityResult result = MeasurePerplexity(
          engine, *tokenizer, ids, {.n_ctx = expected["ctx"], .kind = kind}, [](const PerplexityResult&, int64_t) {});
      CHECK(result.tokens == entry["scored"].get<int64_t>());
      REQUIRE(result.running.size() == entry["chunks"].size());
      double worst = 0, off = 0;
      for (size_t i = 0; i < result.running.size(); ++i) {
        off = std::abs(result.running[i] / entry["chunks"][i].get<double>() - 1);
        worst = std::max(worst, off);
      }
      const double largest = kind == RowKind::kGenerated ? worst : off;
      MESSAGE(std::string(entry["file"]), std::string(", "), std::string(name), std::string(": "),
              result.running.back(), ", off by ", 100 * off, " %, at most ", 100 * worst, " %");
      CHECK(largest <= most_off);
    }
  }
}

TEST_CASE("slow: the default model knows the capital of France") {
  // Its margin over a wrong beginning is 0.08 nats; activations in 8 bits move it by 0.35.
  const std::optional<GgufFile> file = FromCache("SmolLM2-135M-Instruct.Q4_1.gguf");
  if (!file) return;
  const auto tokenizer = Tokenizer::FromGguf(*file);
  const ChatTemplate chat = ChatTemplate::Load(*file, *tokenizer, "");
  const std::vector<TokenId> prompt =
      tokenizer->Encode(chat.Render({{"user", "What is the capital of France?"}}, true));
  Engine engine(*file, Model::FromGguf(*file), {.n_ctx = 128});
  const int sequence = engine.NewSequence();
  Batch batch;
  for (size_t i = 0; i < prompt.size(); ++i)
    batch.push_back({prompt[i], sequence, static_cast<int>(i), RowKind::kPrompt, false});
  batch.back().kind = RowKind::kGenerated;  // as sessions do
  batch.back().logits = true;
  engine.Step(batch);
  std::vector<TokenId> answer;
  while (answer.size() < 32) {
    const auto logits = engine.Logits(0);
    const auto best = static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (tokenizer->IsEndOfGeneration(best)) break;
    answer.push_back(best);
    engine.Step({{best, sequence, engine.Length(sequence), RowKind::kGenerated, true}});
  }
  CHECK(tokenizer->Decode(answer) == "The capital of France is Paris.");
}

}  // namespace thermocline
