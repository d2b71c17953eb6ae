// Which neurons of a model fire on a text.
#pragma once

#include <chrono>
#include <functional>
#include <span>

#include "models/tokenizer.h"
#include "predictor/heat.h"
#include "runtime/engine.h"

namespace thermocline {

inline constexpr int kProfileContext = 512;  // tokens; the text is read in pieces of that many

uint64_t TextHash(std::span<const TokenId> tokens);

// A heat that nothing was read for.
Heat EmptyHeat(const GgufFile& file, const Model& model);

// A heat that has counted nothing of the text yet. Throws Error where the text is too short to learn from, or too long
// to count.
Heat BeginHeat(const GgufFile& file, const Model& model, std::span<const TokenId> tokens);

// Counts the tokens of the text from heat.n_tokens on; `engine` holds `model` with dense FFNs. `on_save`, unless empty,
// sees the heat every `save_every`; begun anew from what it saw, the counts end up the same. The first tokens of the
// text decide what is a high activation, where zero does not, and are in the histogram alone. Throws Error where an
// activation is no number.
void CountNeurons(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                  const std::function<void(const Heat&)>& on_save, Heat& heat,
                  std::chrono::milliseconds save_every = std::chrono::seconds(4));

}  // namespace thermocline
