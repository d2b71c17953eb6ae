// Models with random weights in the shapes of known ones: for measuring speed without their weights, and for comparing
// the silence that is measured in an FFN with the silence that was planted.
//
// A planted model knows for each neuron how often it fires. The last 32 numbers of the hidden state are 1 for every
// token and stay so: no product writes there. Only the gates read them, each with a weight that shifts it so far that a
// normal variable is positive as often as the neuron shall fire. The rest of a gate's row is put together from pieces
// of a few directions that many neurons share, so that a predictor of low rank can learn most of it, and from some
// pieces of its own, so that it cannot learn all.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "models/gguf.h"
#include "models/model.h"
#include "runtime/output_file.h"

namespace thermocline {

struct SynthShape {
  std::string_view name;
  int n_embd, n_ff, n_layer, n_head, n_head_kv;
};
std::span<const SynthShape> SynthShapes();

// How firing frequencies differ among the neurons of a layer.
enum class PlantedHeat : uint8_t {
  kFlat,    // not at all
  kZipf,    // the r-th fires in proportion to 1 / r, though none more than 98 % of the time where that is possible
  kSorted,  // the same, and they stand in this order, as `quantize --heat` leaves them
  kTopics,  // as kZipf over all tokens, but who is hot depends on the kind of token: words in small letters, and others
};

std::string_view Name(PlantedHeat heat);

inline constexpr double kMaxSparsity = 0.999;

struct SynthOptions {
  SynthShape shape;
  DType type =
      DType::kQ4_0;  // of all matrices but the head, which is Q8_0, as is the embedding where sparsity is planted
  Activation activation = Activation::kSilu;
  std::optional<double> sparsity;  // mean share of silent neurons, in [0, kMaxSparsity]; needs kRelu
  PlantedHeat heat = PlantedHeat::kZipf;
  uint64_t seed = 1;
};

// The types that random weights can have.
std::span<const DType> SynthTypes();

// "synthetic 1b Q4_0, random weights": general.name of the file. Real models have no such names.
std::string SynthName(const SynthOptions& options);
bool IsSynthetic(const GgufFile& file);

// Writes a llama file with the vocabulary of another one. The same options give the same bytes. Takes under 64 MB of
// memory. Throws Error where `vocabulary` has none. Does not commit.
void WriteSynth(const SynthOptions& options, const GgufFile& vocabulary, OutputFile& out);

}  // namespace thermocline
