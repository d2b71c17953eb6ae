#include "runtime/load.h"

#include "runtime/progress.h"

namespace thermocline {

std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, int n_ctx, int n_threads) {
  Progress progress("loading", "");
  EngineOptions options;
  options.n_ctx = n_ctx;
  options.n_threads = n_threads;
  options.on_load = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  auto engine = std::make_unique<Engine>(file, model, options);
  file.CheckIntact();
  return engine;
}

}  // namespace thermocline
