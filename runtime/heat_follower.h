// chat --adapt: heat that follows the user (runtime/adaptation.h), and the .heat file that keeps it.
#pragma once

#include <chrono>
#include <filesystem>
#include <future>
#include <optional>
#include <string>

#include "runtime/adaptation.h"

namespace thermocline {

// Writes `recent` into the .heat file of the model, which may be missing, and leaves the rest of it as it is. The file
// is replaced as a whole. Throws Error where one of the two is damaged, or is not of the model with that identity.
void KeepRecentHeat(const std::filesystem::path& model, uint64_t identity, const std::filesystem::path& heat_file,
                    const RecentHeat& recent);

class HeatFollower {
 public:
  // For an engine with FFNs of that form. Throws Error where no neuron of it can be counted, and for a .heat file that
  // is damaged or of another model.
  HeatFollower(const GgufFile& file, const Model& model, FfnMode ffn, std::filesystem::path heat_file);
  // `engine` counts firings and outlives this.
  void Start(Engine& engine, const Model& model);

  void AfterAnswer();  // counts, decides, and now and then keeps
  // Between these nobody else uses the engine.
  void Begin() { adaptation_->Begin(); }
  void End();
  // When no answer follows: keeps what was learned. What goes wrong is said on standard error.
  void Finish();
  std::string Describe() const { return adaptation_->Describe(); }

 private:
  void AwaitKept();

  const std::filesystem::path model_path_, heat_file_;
  const FfnMode ffn_;
  Heat heat_;
  uint64_t identity_;
  std::optional<Adaptation> adaptation_;
  int64_t n_moved_ = 0;  // that was said
  std::future<void> keeping_;
  std::chrono::steady_clock::time_point last_kept_ = std::chrono::steady_clock::now();
};

}  // namespace thermocline
