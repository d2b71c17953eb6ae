// y (+)= W x for float weights. Prompt rows go through oneDNN in one padded tile shape, so that a row's result does not
// depend on how many share the step; generated rows, and everything in a build without oneDNN, through float_gemv.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "cpu/packed.h"
#include "cpu/vector_ops.h"

namespace thermocline {

struct FloatLinearArgs {
  const PackedMatrix& w;  // (N, K) of a float type
  int64_t begin, end;     // rows of w
  const float* x;         // (n_rows, K), x_stride floats apart
  int64_t x_stride;
  float* y;  // (n_rows, end - begin), y_stride floats apart
  int64_t y_stride;
  int64_t n_rows;
  bool accumulate;
};

class FloatLinear {
 public:
  FloatLinear(const VectorOps& ops, int n_threads);
  ~FloatLinear();

  // At plan time: products with rows of length k will come.
  void Prepare(int64_t k);
  // Any number of members may run at once, each with its own `member` index.
  void Run(const FloatLinearArgs& args, const std::function<bool(int64_t row)>& is_prompt, int member) const;
  std::string name() const;  // of what prompt rows take

 private:
  struct Tiles;  // oneDNN's side
  void Gemv(const FloatLinearArgs& args, int64_t row) const;

  const VectorOps& ops_;
  std::unique_ptr<Tiles> tiles_;  // null: everything through float_gemv
};

}  // namespace thermocline
