#include "runtime/heat_follower.h"

#include <utility>

#include "models/error.h"
#include "runtime/output_file.h"
#include "runtime/profile.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

// A terminal that is closed costs what was learned since.
constexpr std::chrono::seconds kKeepEvery{60};

Heat HeatOrNone(const std::filesystem::path& path, const GgufFile& file, const Model& model) {
  std::error_code error;
  return std::filesystem::exists(path, error) ? ReadHeat(path, file, model.config) : EmptyHeat(file, model);
}

}  // namespace

void KeepRecentHeat(const std::filesystem::path& model_path, uint64_t identity, const std::filesystem::path& heat_file,
                    const RecentHeat& recent) {
  const GgufFile file = GgufFile::Open(model_path);
  if (file.Identity() != identity)
    throw Error("{}: the file has changed since it was loaded; what was learned is not of it", model_path.string());
  Heat heat = HeatOrNone(heat_file, file, Model::FromGguf(file));
  heat.recent = recent;
  OutputFile out(heat_file);
  out.Write(SerializeHeat(heat));
  out.Commit();
}

HeatFollower::HeatFollower(const GgufFile& file, const Model& model, FfnMode ffn, std::filesystem::path heat_file)
    : model_path_(file.path()), heat_file_(std::move(heat_file)), ffn_(ffn), identity_(file.Identity()) {
  if (ffn == FfnMode::kPredicted)
    throw Error("--adapt counts which neurons fire, and --sparsity predicted does not see those that it misses");
  if (ffn == FfnMode::kDense)
    throw Error(
        "--adapt is for models whose silent neurons are not read: of the activation relu, or with --sparsity "
        "threshold");
  heat_ = HeatOrNone(heat_file_, file, model);
}

void HeatFollower::Start(Engine& engine, const Model& model) {
  adaptation_.emplace(engine, model, ffn_, std::move(heat_));
  if (!engine.CanReorder())
    Note("--adapt: the CPU computes everything, so there is nothing to re-plan; what fires is kept in {}",
         TerminalSafe(heat_file_.string()));
}

void HeatFollower::AfterAnswer() {
  adaptation_->AfterAnswer();
  const auto now = std::chrono::steady_clock::now();
  if (now - last_kept_ < kKeepEvery) return;
  AwaitKept();
  last_kept_ = now;
  keeping_ = std::async(std::launch::async, KeepRecentHeat, model_path_, identity_, heat_file_, adaptation_->recent());
}

void HeatFollower::End() {
  const std::string failure = adaptation_->End();
  if (!failure.empty()) Note("neurons stay where they are from now on: {}", TerminalSafe(failure));
  if (const int64_t n = std::exchange(n_moved_, adaptation_->n_moved()); n_moved_ > n)
    Note("moved the hottest neurons of {} layers to the device, {} are left", n_moved_ - n, adaptation_->n_waiting());
}

void HeatFollower::AwaitKept() {
  if (!keeping_.valid()) return;
  try {
    keeping_.get();
  } catch (const Error& error) {
    Note("what was learned is not kept: {}", TerminalSafe(error.what()));
  }
}

void HeatFollower::Finish() {
  AwaitKept();
  if (adaptation_->recent().fired.empty()) return;
  try {
    KeepRecentHeat(model_path_, identity_, heat_file_, adaptation_->recent());
  } catch (const Error& error) {
    Note("what was learned is not kept: {}", TerminalSafe(error.what()));
  }
}

}  // namespace thermocline
