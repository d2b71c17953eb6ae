// The models Thermocline knows how to fetch, and where models lie on this machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace thermocline {

// A wheel on a Python package index that holds a model, or one consecutive part of it.
struct CatalogWheel {
  std::string_view requirement;  // "name==version"
  std::string_view wheel_sha256;
  std::string_view member;  // the path inside the wheel
};

struct CatalogEntry {
  std::string_view name;       // what the user says
  std::string_view file_name;  // in ModelDir()
  uint64_t bytes;              // of the finished file
  std::string_view sha256;     // of the finished file, lower-case hexadecimal
  std::string_view license;
  std::string_view license_url;
  bool keeps_terms;                      // a note of the license stays beside the file, and is shown when it is fetched
  std::span<const CatalogWheel> wheels;  // in order: their members one after the other are the file
};

// Every known model; the first is the default.
std::span<const CatalogEntry> Catalog();

// The entry of that name ("" is the default), or nullptr.
const CatalogEntry* FindCatalog(std::string_view name);

// ${XDG_CACHE_HOME:-~/.cache}/thermocline. An XDG_CACHE_HOME that is not absolute is ignored, as its specification
// says. Error where neither XDG_CACHE_HOME nor HOME is set.
std::filesystem::path CacheDir();

// CacheDir()/models.
std::filesystem::path ModelDir();

// Whether the entry's file is there with its full size. Its hash is `pull`'s business: 100 MB at every start of a chat
// would be noticed.
bool IsPresent(const CatalogEntry& entry);

// The file that a MODEL argument means: "" is the default model; otherwise a file, a catalog name, or the name of a
// file in ModelDir() with or without .gguf, in that order. Error naming what to do (pull) where there is no such file.
std::filesystem::path ResolveModel(std::string_view argument);

}  // namespace thermocline
