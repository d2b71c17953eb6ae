#include "runtime/load.h"

#include "cpu/team.h"
#include "cpu/topology.h"
#include "cpu/trace.h"
#include "models/error.h"
#include "models/hash.h"
#include "runtime/catalog.h"
#include "runtime/progress.h"
#include "runtime/synth.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

// What the predicted times of a trace come from is measured in memory that no cache holds.
constexpr int64_t kBandwidthBytes = int64_t{256} << 20;

// One file for each path of a model and form of its FFNs, so that a model that changes replaces its own.
std::filesystem::path PackedPath(const std::string& model, FfnMode ffn) {
  constexpr size_t kStemBytes = 100;  // a file name has at most 255
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(model, error);
  const std::string path = error ? model : canonical.string();
  Hash hash;
  hash.Add({reinterpret_cast<const uint8_t*>(path.data()), path.size()});
  return PackedCacheDir() / fmt::format("{}-{:016x}{}.packed",
                                        std::filesystem::path(path).stem().string().substr(0, kStemBytes), hash.value(),
                                        ffn == FfnMode::kDense       ? ""
                                        : ffn == FfnMode::kPredicted ? "-predicted"
                                                                     : "-bundles");
}

}  // namespace

std::filesystem::path PackedCacheDir() { return CacheDir() / "packed"; }

std::unique_ptr<Engine> LoadEngine(const GgufFile& file, const Model& model, EngineOptions options, bool cache_packed) {
  if (options.tracer)
    options.tracer->set_bandwidth(ReadProbe(Team(options.n_threads).size(), kBandwidthBytes).Measure());
  if (IsSynthetic(file)) Note("{}: what it says means nothing", TerminalSafe(file.GetString("general.name")));
  Progress progress("loading", "");
  options.load.on_load = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  options.load.on_warning = [](const std::string& warning) { Note("warning: {}", TerminalSafe(warning)); };
  try {
    if (cache_packed) options.load.packed_file = PackedPath(file.path(), options.load.ffn);
  } catch (const Error& error) {
    options.load.on_warning(fmt::format("the packed weights cannot be kept: {}", error.what()));
  }
  auto engine = std::make_unique<Engine>(file, model, options);
  file.CheckIntact();
  return engine;
}

}  // namespace thermocline
