// The weights of a model as the kernels read them: all matrices packed, one behind the other in huge pages; vectors as
// floats.
#pragma once

#include <functional>
#include <vector>

#include "cpu/packed.h"
#include "cpu/team.h"
#include "models/gguf.h"
#include "models/model.h"

namespace thermocline {

struct LoadOptions {
  // Called while weights are packed, with bytes done and in all; may be empty. Must not throw.
  std::function<void(int64_t done, int64_t total)> on_load{};
};

class Weights {
 public:
  // Throws Error when memory runs out or the file is damaged. Refers into neither afterwards.
  Weights(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options);
  Weights(const Weights&) = delete;

  const PackedMatrix& matrix(WeightId id) const { return matrices_[id]; }  // empty where the weight is a vector
  const float* vector(WeightId id) const { return vectors_[id].data(); }   // null where it is a matrix
  const std::vector<PackedMatrix>& matrices() const { return matrices_; }
  int64_t bytes() const;

  static int64_t BytesFor(const Model& model);

 private:
  void Pack(const GgufFile& file, const Model& model, Team& team, Isa isa, const LoadOptions& options);

  Buffer memory_;  // of all matrices
  std::vector<PackedMatrix> matrices_;
  std::vector<std::vector<float>> vectors_;
};

}  // namespace thermocline
