// The predictor that needs no training: a neuron is likely to fire where the signs of many of its gate's weights are
// those of what they are multiplied by (arXiv:2411.12692).
#pragma once

#include <cstdint>
#include <vector>

#include "models/dtype.h"
#include "predictor/predictor_training.h"

namespace thermocline {

class SignPredictor {
 public:
  // rows: (n_ff, n_embd) of `type`, one behind the other.
  SignPredictor(DType type, const uint8_t* rows, int64_t n_ff, int64_t n_embd);

  // How many signs agree, of neuron and input: signs of (n_embd) F16 inputs as SignsOf gives them.
  int Agreeing(int64_t neuron, const uint64_t* signs) const;
  std::vector<uint64_t> SignsOf(const uint16_t* input) const;

  // The recall at the one level for all neurons at which `n_predicted` are named; between two levels, on a line.
  double RecallAt(const FiringSamples& samples, int64_t n_predicted) const;

 private:
  int64_t n_ff_, n_embd_, words_;
  std::vector<uint64_t> signs_;  // (n_ff, words_): set where the weight is negative; 0 past n_embd
};

}  // namespace thermocline
