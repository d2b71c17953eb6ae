// Real vocabularies, where this machine has them: against llama.cpp's and Hugging Face's tokens, and against the clock.
#include <doctest/doctest.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "models/gguf.h"
#include "models/tokenizer.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

fs::path Cached(const std::string& name) {
  const char* xdg = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const fs::path cache =
      xdg != nullptr && *xdg != '\0' ? fs::path(xdg) : fs::path(home == nullptr ? "/" : home) / ".cache";
  return cache / "thermocline" / name;
}

std::string ReadAll(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

const fs::path kSmollm = Cached("models/SmolLM2-135M-Instruct.Q4_1.gguf");
const fs::path kGemma = Cached("models/gemma-3-270m-q4_k_m.gguf");
const fs::path kGpt2 = Cached("test-data/ggml-vocab-gpt-2.gguf");
const fs::path kLlama = Cached("test-data/ggml-vocab-llama-spm.gguf");

bool Missing(const fs::path& path, const char* how) {
  if (fs::exists(path)) return false;
  MESSAGE("SKIPPED: " << path.filename().string() << " is not in the cache; get it with " << how);
  return true;
}
constexpr const char* kPull = "./run pull";
constexpr const char* kFetch = "tests/data/fetch_test_data.py";

uint32_t HashOf(const std::vector<TokenId>& ids) {
  uint32_t hash = 0x811C9DC5;
  for (const TokenId id : ids) {
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x01000193;
  }
  return hash;
}

// tests/data/tokenizer/make_ids.py wrote both.
std::vector<std::string> VariedStrings() {
  const std::string data = ReadAll(fs::path(THERMOCLINE_TEST_DATA) / "tokenizer/strings.bin");
  std::vector<std::string> strings;
  for (size_t pos = 0; pos < data.size();) {
    uint16_t bytes;
    REQUIRE(pos + 2 <= data.size());
    std::memcpy(&bytes, data.data() + pos, 2);
    strings.push_back(data.substr(pos + 2, bytes));
    pos += 2u + bytes;
  }
  REQUIRE(strings.size() == 10'000);
  return strings;
}

void CheckHashes(const fs::path& model, const std::string& name) {
  const auto tokenizer = Tokenizer::FromGguf(GgufFile::Open(model));
  const auto strings = VariedStrings();
  const std::string hashes = ReadAll(fs::path(THERMOCLINE_TEST_DATA) / "tokenizer" / (name + ".hash"));
  REQUIRE(hashes.size() == 4 * strings.size());
  size_t differ = 0, first = strings.size();
  for (size_t i = 0; i < strings.size(); ++i) {
    uint32_t expected;
    std::memcpy(&expected, hashes.data() + 4 * i, 4);
    const auto ids = tokenizer->Encode(strings[i], {.add_bos_eos = false, .parse_special = true});
    if (HashOf(ids) != expected && differ++ == 0) first = i;
  }
  CAPTURE(first);
  CHECK(differ == 0);
}

TEST_CASE("tokenizer: SmolLM2 equals Hugging Face tokenizers on 10,000 strings") {
  if (!Missing(kSmollm, kPull)) CheckHashes(kSmollm, "smollm2");
}

TEST_CASE("tokenizer: gemma3 equals Hugging Face tokenizers on 10,000 strings") {
  if (!Missing(kGemma, "./run pull gemma3-270m")) CheckHashes(kGemma, "gemma3");
}

// The files beside llama.cpp's vocabularies: texts with a separator between them, and for each a line of ids.
void CheckAgainstLlamaCpp(const fs::path& vocabulary) {
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  const auto tokenizer = Tokenizer::FromGguf(GgufFile::Open(vocabulary));
  const std::string input = ReadAll(vocabulary.string() + ".inp");
  std::istringstream output(ReadAll(vocabulary.string() + ".out"));
  size_t n = 0;
  for (size_t pos = 0; pos < input.size(); ++n) {
    const size_t end = std::min(input.find(kSeparator, pos), input.size());
    const std::string text = input.substr(pos, end - pos);
    pos = end + kSeparator.size();
    std::string line;
    REQUIRE(std::getline(output, line));
    std::istringstream numbers(line);
    const std::vector<TokenId> expected{std::istream_iterator<TokenId>(numbers), {}};
    CAPTURE(text);
    const auto ids = tokenizer->Encode(text, {.add_bos_eos = false, .parse_special = false});
    CHECK(ids == expected);
    CHECK(tokenizer->Decode(ids) == text);
  }
  CHECK(n == 46);
}

TEST_CASE("tokenizer: the gpt-2 vocabulary equals llama.cpp's tokens") {
  if (!Missing(kGpt2, kFetch)) CheckAgainstLlamaCpp(kGpt2);
}

TEST_CASE("tokenizer: the llama vocabulary equals llama.cpp's tokens") {
  if (!Missing(kLlama, kFetch)) CheckAgainstLlamaCpp(kLlama);
}

// 10 MB in under 5 s. Sanitizers see a tenth of it: they take seven times as long.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kTextBytes = 1'000'000;
#elif defined(__has_feature)
constexpr size_t kTextBytes =
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ? 1'000'000 : 10'000'000;
#else
constexpr size_t kTextBytes = 10'000'000;
#endif
constexpr double kMaxSeconds = 5;

void CheckSpeed(const fs::path& model, const char* how) {
  if (Missing(model, how)) return;
  const auto tokenizer = Tokenizer::FromGguf(GgufFile::Open(model));
  const auto check = [&](const std::string& name, const std::string& unit) {
    CAPTURE(name);
    std::string text;
    while (text.size() < kTextBytes) text += unit;
    timespec before, after;  // of this process: other work on the machine does not count
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    const auto ids = tokenizer->Encode(text, {.add_bos_eos = false, .parse_special = true});
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    const double seconds =
        static_cast<double>(after.tv_sec - before.tv_sec) + 1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
    MESSAGE(model.filename().string() << ", " << kTextBytes / 1000000 << " MB of " << name << ": " << seconds << " s");
    CHECK(seconds < kMaxSeconds);
    CHECK(tokenizer->Decode(ids) == text);
  };
  check("one character", "a");
  check("spaces", " ");
  check("newlines", "\n");
  check("one CJK character", "中");
  std::string cjk;
  for (unsigned i = 0, x = 1; i < 5000; ++i) {
    x = x * 1664525 + 1013904223;
    const unsigned code = 0x4E00 + (x >> 12) % 20000;
    cjk += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 0x3F)),
            static_cast<char>(0x80 | (code & 0x3F))};
  }
  check("CJK", cjk);
}

TEST_CASE("slow: tokenizer: byte-level BPE takes linear time") { CheckSpeed(kSmollm, kPull); }
TEST_CASE("slow: tokenizer: gemma3's SentencePiece takes linear time") { CheckSpeed(kGemma, "./run pull gemma3-270m"); }
TEST_CASE("slow: tokenizer: llama's SentencePiece takes linear time") { CheckSpeed(kLlama, kFetch); }

}  // namespace
}  // namespace thermocline
