// The executor's side of a trace: names its stages and counts what they read and compute.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/executor.h"
#include "cpu/op_cost.h"
#include "cpu/plan.h"
#include "cpu/trace.h"

namespace thermocline {

class StageTracer {
 public:
  // `stages` must outlive it.
  StageTracer(Tracer& tracer, int n_members, const Model& model, KvTypes kv_types, const std::vector<Stage>& stages);

  void BeginStep(const StepView& step);
  void EndStep();
  // The track of a member that is about to work on the stage.
  TraceTrack& Begin(int member, size_t stage) const;

 private:
  TraceEvent Count(size_t stage) const;

  Tracer& tracer_;
  const std::vector<Stage>& stages_;
  int32_t first_label_;  // the step's; the stages' follow
  std::vector<OpCost> costs_;
  const StepView* step_ = nullptr;
  uint32_t n_step_ = 0;
  int64_t begin_ns_ = 0;
};

}  // namespace thermocline
