// From a file to an engine, as the commands do it.
#pragma once

#include <memory>

#include "models/gguf.h"
#include "runtime/engine.h"

namespace thermocline {

// n_ctx, n_threads, tracer, max_sequences and n_threads_batch as in EngineOptions, ffn as in LoadOptions. With progress
// on standard error, and the file checked afterwards: one that shrank while it was read is an Error. cache_packed: the
// packed weights are kept in PackedCacheDir(); what goes wrong there is said on standard error.
std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, int n_ctx, int n_threads,
                                   Tracer* tracer = nullptr, bool cache_packed = false, int max_sequences = 1,
                                   FfnMode ffn = FfnMode::kDense, int n_threads_batch = 0);

// CacheDir()/packed.
std::filesystem::path PackedCacheDir();
// The help of --cache-packed.
inline constexpr char kCachePackedHelp[] =
    "Keep the packed weights, as large as the model, in ~/.cache/thermocline/packed, so that the next start maps them; "
    "delete them there at any time";

}  // namespace thermocline
