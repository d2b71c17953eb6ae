// The neurons of an FFN in another order than the file has them, which changes nothing of what it computes: rows of
// gate and up, their biases, and columns of down move together.
//
// Blocks of down's type run along the neurons. Where an order keeps together what a block holds, blocks move as they
// are; else down is quantized anew, to Q8_0, whatever block type it had.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "models/dtype.h"

namespace thermocline {

struct Model;

class NeuronOrder {
 public:
  // `neurons`, each of [0, n_ff) once: the i-th is the file's neurons[i]. From every multiple of `unit` on so many are
  // neighbours in the file as well, from a multiple of it on; `unit` divides n_ff.
  NeuronOrder(std::vector<int32_t> neurons, int unit);

  int32_t operator[](int64_t i) const { return neurons_[static_cast<size_t>(i)]; }
  int64_t size() const { return std::ssize(neurons_); }
  int unit() const { return unit_; }
  // In which columns in this order are held.
  DType TypeOf(DType source) const { return unit_ % Info(source).block == 0 ? source : DType::kQ8_0; }
  uint64_t hash() const;

 private:
  std::vector<int32_t> neurons_;
  int unit_;
};

// By layer; empty, or null for a layer: as in the file.
using NeuronOrders = std::vector<std::shared_ptr<const NeuronOrder>>;

// Ids of the weights that an order of the layer moves, each once: matrices of its FFN, and biases in front of the
// activation.
std::vector<int16_t> OrderedWeights(const Model& model, int layer);
// The model with its FFNs in these orders.
Model Reorder(const Model& model, const NeuronOrders& orders);
// Of all of them together; 0: there are none.
uint64_t HashOf(const NeuronOrders& orders);

// The fewest neurons that an order must keep together to lose nothing of the layer's down.
int LosslessUnit(const Model& model, int layer);

}  // namespace thermocline
