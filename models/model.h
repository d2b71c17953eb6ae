// What a model is: the row of the architecture table, the numbers of one checkpoint, its tensors, and the list of op
// descriptors that one forward pass executes. Nothing here knows how anything is computed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/gguf.h"
#include "models/neuron_order.h"

namespace thermocline {

enum class RopeKind : uint8_t {
  kInterleaved,  // rotates (x[2i], x[2i+1]): llama files, whose q and k rows are permuted for it
  kHalves,       // rotates (x[i], x[i + n/2]): "NeoX"
  kNone,         // positions are learned
};
enum class NormKind : uint8_t {
  kRms,    // x / rms(x) * weight
  kLayer,  // (x - mean(x)) / deviation(x) * weight + bias
};
enum class Activation : uint8_t { kSilu, kGeluTanh, kRelu };
// How activations are called in thermocline.activation. FindActivation: nullopt for unknown ones.
std::string_view Name(Activation activation);
std::optional<Activation> FindActivation(std::string_view name);
std::string ActivationNames();  // all of them, comma-separated

// An architecture is a row of data. All of them: a norm before attention and before the FFN, grouped-query attention,
// optional biases of linear layers (taken where the file has them).
struct Arch {
  const char* name;  // general.architecture
  NormKind norm;
  RopeKind rope;
  int position_offset;    // rows in front of position 0's in a table of learned positions; files may leave them out
  Activation activation;  // unless the file says otherwise in thermocline.activation
  bool gated_ffn;         // act(gate) * up; otherwise act(up)
  bool qk_norm;           // RMS norm over each head of q and k, before rope
  bool post_norms;        // RMS norm of what attention and FFN add to the residual
  bool scale_embedding;   // embeddings are multiplied by sqrt(n_embd)
  int global_period;      // every n-th layer attends to everything, the others within the window; 0: no window
  float local_rope_base;  // rope base of window layers unless the file names one
};
std::span<const Arch> Archs();
const Arch* FindArch(std::string_view name);  // nullptr: unknown

struct ModelConfig {
  Arch arch;
  int n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab;
  int n_ctx_train;  // the context the model was trained for
  float norm_eps;
  float attention_scale;  // multiplies q.k
  float embedding_scale;  // 1 unless arch.scale_embedding
  int window;             // tokens a window layer sees, itself included; 0: no window layers
  int rope_dims;          // leading dimensions of a head that rotate
  float rope_base, local_rope_base;
  float rope_scale;  // positions are multiplied by it (1 / linear factor) in global layers

  bool IsWindowLayer(int layer) const;
  bool HasLearnedPositions() const { return arch.rope == RopeKind::kNone; }  // n_ctx_train of them
};

// What flows between ops, one row per batch row; widths in `Program::width`.
enum class Slot : uint8_t {
  kHidden,
  kNormed,
  kQuery,
  kKey,
  kValue,
  kAttention,
  kGate,
  kUp,
  kBranch,
  // In halves of a split program: the other side's part of a sum; attention left unfinished, here and there.
  kPartial,
  kState,
  kOtherState,
  kLogits,
  kCount
};

using WeightId = int16_t;  // index into Model::weights; -1: none

struct Projection {
  WeightId weight = -1;     // (N, K)
  WeightId bias = -1;       // (N) or none
  Slot out = Slot::kCount;  // (rows, N)
};

enum class OpKind : uint8_t {
  kEmbed,      // out = table[token] * scale, and + positions[position + position_offset] where there is that table
  kNorm,       // out (+)= norm(in) * weight, and + bias for a layer norm
  kLinear,     // projections[i].out (+)= weight[i] in + bias[i]; all read the same `in`
  kHeadNorm,   // in place on `out`: rms_norm of each head * weight
  kRope,       // in place on `out`, each head
  kAttention,  // append kKey, kValue to the KV pages of `layer`, then out = attention(kQuery)
  kGatedAct,   // out = act(in) * kUp
  kAct,        // out = act(in)
  // In halves of a split program (runtime/split.h):
  kSend,            // `in` goes to the other side
  kReceive,         // `out` comes from the other side
  kSendPanels,      // panels [begin, end) of `weight` go to the other side; in: as of the product that reads it
  kAdd,             // out += in
  kAttentionState,  // kAttention over tokens [first_token, end_token) alone, appending those of them, left unfinished:
                    // of each head the largest score, of each head the sum of exp(score - max), then of each head the
                    // sum of exp(score - max) * v, as in arXiv:2205.14135; -inf, 0, 0 where none of the tokens is seen
  kAttentionMerge,  // out = attention over the tokens of the states `in` and kOtherState
};

// Floats of a row of kState.
constexpr int AttentionStateWidth(int n_head, int head_dim) { return n_head * (head_dim + 2); }

// One op of the forward pass. Fields that a kind does not name in its comment are unused by it.
struct Op {
  OpKind kind;
  int16_t layer = -1;  // -1: outside the layers
  Slot in = Slot::kCount;
  Slot out = Slot::kCount;
  bool accumulate = false;   // add to `out` instead of overwriting it
  bool wanted_rows = false;  // only the rows whose logits somebody wants
  WeightId weight = -1;      // kEmbed, kNorm, kHeadNorm, kSendPanels
  WeightId bias = -1;        // kNorm: of a layer norm; none: an RMS norm
  WeightId positions = -1;   // kEmbed: (n_ctx_train + position_offset, n_embd), or none
  int position_offset = 0;   // kEmbed
  std::array<Projection, 3> projections{};
  int n_projections = 0;
  // kGatedAct, kAct, and the kLinear that reads kGate: neurons [begin, end), whose columns count. What stands in front
  // of them or behind counts as zero.
  int begin = 0, end = 0;
  Activation activation = Activation::kSilu;
  RopeKind rope = RopeKind::kInterleaved;
  float rope_base = 0, rope_scale = 1;
  WeightId rope_factors = -1;                  // (rope_dims / 2) divisors of the frequencies, or none
  int window = 0;                              // kAttention: tokens seen, itself included; 0: all
  float scale = 1;                             // kEmbed, kAttention
  int first_token = 0, end_token = INT32_MAX;  // kAttentionState: multiples of a page
  int16_t channel = -1;  // kSend, kReceive: which of the places where the two sides meet; kSendPanels: which piece

  // kLinear: prompt rows of `in` stand in 16 bits where a group's squared scale is more than so many times the row's
  // mean, else in 8, or with AMX in BF16; negative: all in 16 (HACKING.md "Numerics").
  float large_group = -1;
};

// (rope_dims / 2): radians per position of a kRope op's pairs. `factors`: the weight rope_factors, or null.
std::vector<double> RopeFrequencies(const ModelConfig& config, const Op& op, const float* factors);
// Whether two kRope ops rotate by the same frequencies.
bool SameFrequencies(const Op& a, const Op& b);

struct Program {
  std::vector<Op> ops;
  std::array<int, static_cast<size_t>(Slot::kCount)> width{};  // floats per row of a slot
};

// Rows [first_row, first_row + n), columns [first_k, first_k + k) of a tensor: all of it but in halves of a split
// model, where n = 0 is a weight that this half has nothing of. models/weight_rows.h reads them.
//
// Of a transposed tensor (PowerInfer's ffn_down_t) the weight's rows are the columns; blocks run across them there, so
// that the weight is quantized anew, to Q8_0.
struct Weight {
  const Tensor* tensor;
  bool matrix;   // (N, K) to be packed; otherwise a vector of n floats
  int64_t n, k;  // k = 1 for vectors
  int64_t first_row = 0, first_k = 0;
  std::shared_ptr<const NeuronOrder> rows{}, columns{};  // in which they are counted; null: as in the file
  bool transposed = false;

  DType type() const;         // in which it is held
  int block() const;          // consecutive columns that the file quantized together
  int64_t row_bytes() const;  // from one row of the tensor to the next
  // Where the first block of the weight stands, if it has no order of its own and is not transposed.
  const uint8_t* data() const;
};

// What PowerInfer's files say about which neurons of a layer fire: where (out max(0, in x))[i] reaches a threshold.
struct FilePredictor {
  const Tensor* in;   // fc1 (rank, n_embd)
  const Tensor* out;  // fc2 (n_ff, rank)
};

// A checkpoint: configuration, weights by id and the forward pass. Refers into the file, which must outlive it.
struct Model {
  ModelConfig config;
  std::vector<Weight> weights;
  Program program;
  std::vector<FilePredictor> predictors;  // of all layers, or empty

  // Throws Error naming file and key or tensor for an unknown architecture (with the list of the known), for anything
  // missing, of the wrong shape or type, out of bounds or not supported (such as yarn rope scaling).
  static Model FromGguf(const GgufFile& file);
  // The same with another architecture row: for tests that ask what each field of the table does.
  static Model FromGguf(const GgufFile& file, const Arch& arch);
};

}  // namespace thermocline
