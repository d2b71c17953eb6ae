// Neurons in the order of their heat: the few that fire for almost every token first, where a placement puts them on
// the device (after PowerInfer, arXiv:2312.12456).
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "models/neuron_order.h"
#include "predictor/heat.h"

namespace thermocline {

// What moves as one.
enum class HeatOrder : uint8_t {
  kBlocks,   // as many neurons as share a block of down: nothing is lost, but a block is only as hot as its mean
  kNeurons,  // each by itself: down is quantized anew, to Q8_0, unless it has floats
};
const char* Name(HeatOrder by);  // "blocks", "neurons"
std::optional<HeatOrder> FindHeatOrder(std::string_view name);

// Of the levels at which firings were counted, the one that tells hot from cold best.
int64_t MiddleTarget(const Heat& heat);
// In how many of the text's tokens each neuron fired (n_ff), at that level.
std::span<const double> ProfileCounts(const Heat& heat, int layer);
// The most frequent first, `unit` neurons, which are neighbours in the file, as one.
std::shared_ptr<const NeuronOrder> OrderByCounts(std::span<const double> counts, int unit);

// `model` is the one of `heat`, as the file has it.
NeuronOrders HottestFirst(const Model& model, const Heat& heat, HeatOrder by);

// How often the neurons of each block of kHotBlock fire: the mean share of tokens, by layer and block. `orders` are of
// HottestFirst, or empty for the file's order. With them blocks come hottest first; where several move as one, they
// count as equally hot.
std::vector<std::vector<double>> BlockHeat(const Heat& heat, const NeuronOrders& orders);

// What is known of a model whose neurons stand hottest first.
struct HotNeurons {
  NeuronOrders orders;
  std::vector<std::vector<double>> heat;  // BlockHeat
};
HotNeurons ByHeat(const Model& model, const Heat& heat, HeatOrder by);
// By which nothing is lost that counts, and no weight gets more bytes: by neurons where down has floats or Q8_0.
HeatOrder FreeOrder(const Model& model);

}  // namespace thermocline
