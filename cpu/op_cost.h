// What an op has to read from memory and to compute, whatever executes it: each packed weight once, keys and values of
// the tokens seen once; a multiply and an add are two operations, however many planes the activations have.
#pragma once

#include <cstdint>

#include "models/kv_layout.h"
#include "models/model.h"

namespace thermocline {

struct Work {
  int64_t bytes = 0, ops = 0;
};

// Of kLinear and kAttention; what works row by row stays in the cache and counts nothing.
class OpCost {
 public:
  OpCost(const Model& model, const Op& op, KvTypes kv_types);

  // kLinear: over so many rows; the weights are not read for none.
  void AddRows(int64_t n_rows, Work& work) const;
  // kAttention: rows at consecutive positions of one sequence.
  void AddSpan(int64_t first_position, int64_t n_rows, Work& work) const;

 private:
  int64_t weight_bytes_ = 0, ops_per_row_ = 0;
  int64_t bytes_per_token_ = 0, ops_per_pair_ = 0;  // of a row and a token it sees
  int64_t window_ = 0;
};

// Of a step with n_rows rows of each of n_sequences sequences, of which the last n_wanted want logits.
Work CountStep(const Model& model, KvTypes kv_types, int64_t first_position, int64_t n_rows, int64_t n_wanted,
               int64_t n_sequences = 1);

}  // namespace thermocline
