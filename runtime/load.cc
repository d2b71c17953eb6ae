#include "runtime/load.h"

#include "cpu/team.h"
#include "cpu/topology.h"
#include "cpu/trace.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

// What the predicted times of a trace come from is measured in memory that no cache holds.
constexpr int64_t kBandwidthBytes = int64_t{256} << 20;

}  // namespace

std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, int n_ctx, int n_threads, Tracer* tracer) {
  if (tracer) tracer->set_bandwidth(MeasureReadBandwidth(Team(n_threads).size(), kBandwidthBytes));
  Progress progress("loading", "");
  EngineOptions options;
  options.n_ctx = n_ctx;
  options.n_threads = n_threads;
  options.tracer = tracer;
  options.load.on_load = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  auto engine = std::make_unique<Engine>(file, model, options);
  file.CheckIntact();
  return engine;
}

}  // namespace thermocline
