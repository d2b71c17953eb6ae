// The architecture table. Values: the Hugging Face `transformers` models of the same names.
#include "models/model.h"

namespace thermocline {
namespace {

constexpr Arch kArchs[] = {
    // SmolLM2, TinyLlama, Mistral, Llama
    {.name = "llama",
     .norm = NormKind::kRms,
     .rope = RopeKind::kInterleaved,
     .position_offset = 0,
     .activation = Activation::kSilu,
     .gated_ffn = true,
     .qk_norm = false,
     .post_norms = false,
     .scale_embedding = false,
     .global_period = 0,
     .local_rope_base = 0},
    {.name = "gemma3",
     .norm = NormKind::kRms,
     .rope = RopeKind::kHalves,
     .position_offset = 0,
     .activation = Activation::kGeluTanh,
     .gated_ffn = true,
     .qk_norm = true,
     .post_norms = true,
     .scale_embedding = true,
     .global_period = 6,
     .local_rope_base = 10000},
    // OPT, except the one of 350M, whose norms stand behind the layers. llama.cpp knows no OPT; the names of the
    // tensors
    // are those of PowerInfer's gguf-py (fc1 is ffn_up, fc2 ffn_down, embed_positions position_embd).
    {.name = "opt",
     .norm = NormKind::kLayer,
     .rope = RopeKind::kNone,
     .position_offset = 2,
     .activation = Activation::kRelu,
     .gated_ffn = false,
     .qk_norm = false,
     .post_norms = false,
     .scale_embedding = false,
     .global_period = 0,
     .local_rope_base = 0},
};

struct NamedActivation {
  Activation activation;
  std::string_view name;
};
constexpr NamedActivation kActivations[] = {
    {Activation::kSilu, "silu"}, {Activation::kGeluTanh, "gelu_tanh"}, {Activation::kRelu, "relu"}};

}  // namespace

std::string_view Name(Activation activation) {
  for (const NamedActivation& row : kActivations) {
    if (row.activation == activation) return row.name;
  }
  return "";
}

std::optional<Activation> FindActivation(std::string_view name) {
  for (const NamedActivation& row : kActivations) {
    if (row.name == name) return row.activation;
  }
  return std::nullopt;
}

std::string ActivationNames() {
  std::string names;
  for (const NamedActivation& row : kActivations) names.append(names.empty() ? "" : ", ").append(row.name);
  return names;
}

std::span<const Arch> Archs() { return kArchs; }

const Arch* FindArch(std::string_view name) {
  for (const Arch& arch : kArchs) {
    if (arch.name == name) return &arch;
  }
  return nullptr;
}

}  // namespace thermocline
