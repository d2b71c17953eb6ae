// Heat that follows the user: counts which neurons fire in answers, decides between them whether others should stand on
// the device, and moves them while nobody needs the engine.
#pragma once

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "predictor/heat.h"
#include "predictor/replan.h"
#include "runtime/engine.h"

namespace thermocline {

// What the CPU reads for a generated token, whose half of the model is this one.
CpuReads ReadsOf(const Model& cpu_half, FfnMode ffn);

class Adaptation {
 public:
  // `engine` was loaded from `model`, as the file has it, with FfnMode::kExact or kThreshold and count_firings, and
  // outlives this. profile: the model's .heat file, which may have counted nothing, and whose recent counts go on.
  Adaptation(Engine& engine, const Model& model, FfnMode ffn, Heat profile);
  ~Adaptation();
  Adaptation(const Adaptation&) = delete;

  // Learns from what the engine has generated since the last call, and decides what moves.
  void AfterAnswer();
  // Moves neurons, layer by layer, on a thread of its own, until End: nobody else uses the engine meanwhile.
  void Begin();
  // Waits until the layer at hand stands in the old or the new order. Returns what went wrong since Begin, which ended
  // the moving for good; empty: nothing.
  std::string End();

  const RecentHeat& recent() const { return profile_.recent; }
  int64_t n_moved() const { return n_moved_; }  // layers, ever since
  int n_waiting() const { return static_cast<int>(plan_.moves.size()); }
  // "61.2 % of firings on the device, 70.1 % when 22 layers have moved"; empty where there is no device.
  std::string Describe() const;

 private:
  void Move();

  Engine& engine_;
  Heat profile_;
  std::vector<int> units_;  // by layer
  CpuReads reads_;
  Replan plan_;  // its moves are those that are left
  int64_t n_moved_ = 0;
  bool ended_ = false;
  std::thread worker_;
  std::atomic<bool> stop_ = false;
  std::string failure_;  // of the worker
};

}  // namespace thermocline
