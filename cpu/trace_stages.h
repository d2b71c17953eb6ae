// The executor's side of a trace: names its stages and counts what they read and compute.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/executor.h"
#include "cpu/plan.h"
#include "cpu/trace.h"

namespace thermocline {

class StageTracer {
 public:
  // `packed_bytes`: of each weight, by id. `stages` must outlive it.
  StageTracer(Tracer& tracer, int n_members, const Model& model, const std::vector<Stage>& stages,
              const std::vector<int64_t>& packed_bytes);

  void BeginStep(const StepView& step);
  void EndStep();
  // The track of a member that is about to work on the stage.
  TraceTrack& Begin(int member, size_t stage) const;

 private:
  struct Cost {  // of a stage: fixed, per row, and per pair of a row and a token it sees
    int64_t bytes = 0, ops_per_row = 0, bytes_per_token = 0, ops_per_pair = 0;
    int window = 0;
  };
  TraceEvent Count(size_t stage) const;

  Tracer& tracer_;
  const std::vector<Stage>& stages_;
  int32_t first_label_;  // the step's; the stages' follow
  std::vector<Cost> costs_;
  const StepView* step_ = nullptr;
  uint32_t n_step_ = 0;
  int64_t begin_ns_ = 0;
};

}  // namespace thermocline
