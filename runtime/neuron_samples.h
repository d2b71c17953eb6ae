// What FFNs read on a text and which of their neurons fired: what predictors are trained on and judged by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/tokenizer.h"
#include "predictor/predictor_training.h"
#include "runtime/engine.h"

namespace thermocline {

// What one token takes in the samples of all layers.
int64_t SampleBytes(const ModelConfig& config);
// What samples may take of the memory that is free now.
int64_t SampleMemory();

// By layer, of the same tokens: all of the text, or as many as `max_bytes` hold, each as likely to be among them.
// `engine` holds `model` with dense FFNs; a neuron fires where |act(gate)| is above firing_levels[layer]. Throws Error
// where an activation is no number.
std::vector<FiringSamples> CollectSamples(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                                          std::span<const float> firing_levels, int64_t max_bytes);

}  // namespace thermocline
