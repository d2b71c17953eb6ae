#include "runtime/catalog.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "models/error.h"

namespace thermocline {
namespace {

namespace fs = std::filesystem;

// An environment variable set (or, for nullptr, unset) for as long as this lives.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    Set(value);
  }
  ~ScopedVariable() { Set(before_ ? before_->c_str() : nullptr); }
  ScopedVariable(const ScopedVariable&) = delete;
  ScopedVariable& operator=(const ScopedVariable&) = delete;

 private:
  void Set(const char* value) {
    if (value != nullptr) {
      setenv(name_, value, 1);
    } else {
      unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> before_;
};

// A cache folder of our own, gone at the end.
struct Cache {
  Cache() : dir(MakeDir()), variable("XDG_CACHE_HOME", dir.c_str()) {
    fs::create_directories(dir / "thermocline" / "models");
  }
  ~Cache() { fs::remove_all(dir); }
  fs::path Add(const std::string& name, uint64_t bytes) const {
    const fs::path path = dir / "thermocline" / "models" / name;
    std::ofstream(path).put('x');
    fs::resize_file(path, bytes);
    return path;
  }
  static fs::path MakeDir() {
    std::string pattern = (fs::temp_directory_path() / "thermocline-catalog-XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    return pattern;
  }
  fs::path dir;
  ScopedVariable variable;
};

std::string ErrorOf(std::string_view argument) {
  try {
    return "found " + ResolveModel(argument).string();
  } catch (const Error& error) {
    return error.what();
  }
}

bool Contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

TEST_CASE("catalog: the cache folder follows XDG_CACHE_HOME, then HOME") {
  {
    const ScopedVariable cache("XDG_CACHE_HOME", "/a b");
    CHECK(CacheDir() == "/a b/thermocline");
    CHECK(ModelDir() == "/a b/thermocline/models");
  }
  const ScopedVariable home("HOME", "/h");
  for (const char* unusable : {static_cast<const char*>(nullptr), "", "relative"}) {
    const ScopedVariable cache("XDG_CACHE_HOME", unusable);
    CHECK(CacheDir() == "/h/.cache/thermocline");
  }
  const ScopedVariable cache("XDG_CACHE_HOME", nullptr);
  const ScopedVariable no_home("HOME", nullptr);
  CHECK_THROWS_AS(CacheDir(), Error);
}

TEST_CASE("catalog: the default is the first entry, names are exact") {
  REQUIRE(FindCatalog("") != nullptr);
  CHECK(FindCatalog("")->name == "smollm2");
  CHECK(FindCatalog("smollm2") == FindCatalog(""));
  REQUIRE(FindCatalog("gemma3-270m") != nullptr);
  CHECK(FindCatalog("gemma3-270m")->file_name == "gemma-3-270m-q4_k_m.gguf");
  CHECK(FindCatalog("gemma3-270m")->keeps_terms);
  CHECK(FindCatalog("smollm") == nullptr);
  for (const CatalogEntry& entry : Catalog()) {
    CAPTURE(entry.name);
    CHECK(entry.sha256.size() == 64);
    CHECK(entry.bytes > 0);
    CHECK_FALSE(entry.wheels.empty());
  }
}

TEST_CASE("catalog: a model is found by catalog name, by file name with and without .gguf, and by path") {
  const Cache cache;
  const CatalogEntry& entry = *FindCatalog("");
  const fs::path model = cache.Add(std::string(entry.file_name), entry.bytes);
  CHECK(ResolveModel("") == model);
  CHECK(ResolveModel("smollm2") == model);
  CHECK(ResolveModel("SmolLM2-135M-Instruct.Q4_1.gguf") == model);
  CHECK(ResolveModel("SmolLM2-135M-Instruct.Q4_1") == model);
  CHECK(ResolveModel(model.string()) == model);
  CHECK(IsPresent(entry));
}

TEST_CASE("catalog: what is missing is said with what to do") {
  const Cache cache;
  CHECK(Contains(ErrorOf(""), "thermocline pull smollm2"));
  CHECK(Contains(ErrorOf("gemma3-270m"), "thermocline pull gemma3-270m"));
  const std::string unknown = ErrorOf("mistral");
  CHECK(Contains(unknown, "mistral"));
  CHECK(Contains(unknown, "smollm2, gemma3-270m"));
  CHECK(Contains(ErrorOf("/no/such/model.gguf"), "/no/such/model.gguf: no such file"));
  CHECK(Contains(ErrorOf(cache.dir.string()), "a folder"));
}

TEST_CASE("catalog: a model of the wrong size is not taken for the model") {
  const Cache cache;
  const CatalogEntry& entry = *FindCatalog("");
  cache.Add(std::string(entry.file_name), entry.bytes - 1);
  CHECK_FALSE(IsPresent(entry));
  CHECK(Contains(ErrorOf(""), "fetch it anew"));
}

}  // namespace
}  // namespace thermocline
