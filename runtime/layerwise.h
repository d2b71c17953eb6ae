// Encoding a model from its first layer to its last. What a matrix reads by then is not what it reads in the source, as
// everything before it was rounded: its weights are moved to where they put out of that what the source puts out, and
// encoded with feedback of that (GPTAQ, arXiv:2504.02692, after GPTQ's own order, arXiv:2210.17323, section 3.3).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/team.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "runtime/calibration.h"

namespace thermocline {

// The tensors of a file in other types.
struct Encoding {
  std::vector<DType> types;                 // by tensor
  std::vector<std::vector<uint8_t>> bytes;  // likewise; none where the file has it of that type

  bool operator==(const Encoding&) const = default;
};

// The model of `file` with its tensors as encoded, which `tensors` becomes; refers to both.
Model WithTensors(const GgufFile& file, const Model& model, const Encoding& encoding, std::vector<Tensor>& tensors);

// Runs `tokens` through the source and what has become of it, a layer at a time, in chunks of n_ctx. `embedding`: of
// what the source multiplies by its embedding; null where it does not. `known`: what this made of the same source and
// tokens with other types, or null; up to the first that differs, bytes are taken from there. Throws Error where an
// input is no number, or memory does not suffice.
Encoding EncodeLayerwise(const GgufFile& file, const Model& model, std::vector<DType> types, const Feedback* embedding,
                         std::span<const TokenId> tokens, int n_ctx, Team& team, const Encoding* known = nullptr);

}  // namespace thermocline
