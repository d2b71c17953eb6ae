// From a file to an engine, as the commands do it.
#pragma once

#include <memory>

#include "models/gguf.h"
#include "runtime/engine.h"

namespace thermocline {

// With progress on standard error, and the file checked afterwards: one that shrank while it was read is an Error.
// cache_packed: the packed weights are kept in PackedCacheDir(); what goes wrong there is said on standard error.
std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, EngineOptions options,
                                   bool cache_packed = false);

// CacheDir()/packed.
std::filesystem::path PackedCacheDir();
// The help of --cache-packed.
inline constexpr char kCachePackedHelp[] =
    "Keep the packed weights, as large as the model, in ~/.cache/thermocline/packed, so that the next start maps them; "
    "delete them there at any time";

}  // namespace thermocline
