// From a file to an engine, as the commands do it.
#pragma once

#include <memory>

#include "models/gguf.h"
#include "runtime/engine.h"

namespace thermocline {

// n_ctx, n_threads and tracer as in EngineOptions. With progress on standard error, and the file checked afterwards:
// one that shrank while it was read is an Error.
std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, int n_ctx, int n_threads,
                                   Tracer* tracer = nullptr);

}  // namespace thermocline
