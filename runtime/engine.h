// The engine: one Step over a batch of rows serves chat, perplexity, benchmarks and tests.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/executor.h"
#include "cpu/weights.h"
#include "models/kv_layout.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "predictor/recent_heat.h"
#include "runtime/hybrid.h"

namespace thermocline {

class Tracer;

// How exactly a row is computed (HACKING.md "Numerics"). The last row of a prompt is of the second kind too: it chooses
// the first token of the answer, and no attention averages over its roundings.
enum class RowKind : uint8_t { kPrompt, kGenerated };

// One token of one sequence. Consecutive rows of a sequence form a span and have consecutive positions, the first one
// equal to the sequence's length.
struct BatchRow {
  TokenId token;
  int sequence;
  int position;
  RowKind kind;
  bool logits;  // wanted output
};
using Batch = std::vector<BatchRow>;

struct EngineOptions {
  int n_ctx = 0;            // tokens per sequence; 0: what the model and memory allow, at most kDefaultMaxContext
  int n_threads = 0;        // of steps of generated rows alone; 0: one per physical core we may use
  int n_threads_batch = 0;  // of steps with prompt rows; 0: as many
  int max_sequences = 1;
  KvTypes kv_types{};  // of keys and values kept
  // Shuffles the order in which physical pages are handed out; for tests.
  uint64_t page_seed = 0;
  LoadOptions load{};
  // To run on, in turns with others: teams of several engines would have threads on the same cores, and send them to
  // rest for being late. At least as large as the numbers of threads; must outlive the engine. Null: its own.
  Team* team = nullptr;
  Tracer* tracer = nullptr;  // unless null, learns what every step does; must outlive the engine
  DeviceOptions device{};
  // The file again, should the device be lost with the weights it holds; empty: from its path.
  std::function<GgufFile()> reopen{};
};

inline constexpr int kDefaultMaxContext = 8192;
inline constexpr int kMaxBatchRows = 512;

// Thrown by Step after Cancel(); the sequences of the batch keep their length from before the step.
struct Cancelled {};

// Thrown by Step when the device is lost in it: all sequences are empty, and what follows runs on the CPU alone.
class SequencesLost : public Error {
 public:
  using Error::Error;
};

class Engine {
 public:
  // Packs the weights of `model` (which refers into `file`); afterwards neither is referred to. A device that fails
  // gets a smaller part, or none; it computes its neurons whether they are predicted or not. Throws Error when memory
  // does not suffice, THERMOCLINE_ISA asks for what this CPU lacks, or the file was damaged under the map.
  Engine(const GgufFile& file, const Model& model, const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;

  const ModelConfig& config() const;
  int n_ctx() const;
  int n_threads() const;  // as in EngineOptions, never 0
  int n_threads_batch() const;
  Team& team();  // what the engine runs on, for others' work between its steps
  KvTypes kv_types() const;
  // What the device computes; all of it with the CPU where there is none, or it is lost.
  Placement placement() const;

  int NewSequence();  // throws Error past max_sequences
  void FreeSequence(int sequence);
  // Rows of the next step of a prompt of which so many are left: the last one, which is no prompt row, goes by itself
  // where the others are streamed.
  int PromptRows(int n_left) const;
  int Length(int sequence) const;  // tokens whose keys and values are kept
  // Forgets all tokens from position n on. Returns the new length: n, or 0 where the window layers have already freed
  // pages that position n would need (everything must be fed again).
  int Truncate(int sequence, int n);

  // Runs the forward pass over at most kMaxBatchRows rows. Throws Error when a sequence would exceed n_ctx (with both
  // numbers), Cancelled after Cancel(); in both cases no sequence has changed. Throws SequencesLost.
  void Step(const Batch& batch);
  // (n_vocab) for the i-th row of the last batch that wanted logits; valid until the next Step.
  std::span<const float> Logits(int i) const;

  // Calls `hook` at the end of every Step, which may change levels and audits; empty: no longer.
  void SetStepHook(std::function<void()> hook);

  // From any thread or signal handler: the running (or next) Step throws Cancelled at the next layer.
  void Cancel();

  // Shows `tap` the input of every product and activation from now on (cpu/executor.h); empty: no longer. Without a
  // tracer only.
  void SetInputTap(InputTap tap);

  // Between steps. Of each layer, the |act(gate)| above which a generated row adds a neuron, where FFNs stand in
  // bundles (LoadOptions::ffn); 0 at first, which leaves out nothing but zeros.
  void SetNeuronLevels(std::span<const float> levels);
  // Between steps. Of each layer, the score above which its predictor names a neuron, where FfnMode::kPredicted was
  // loaded; the predictors' own at first.
  void SetPredictorLevels(std::span<const float> levels);
  // Every n-th generated row, at most one of a step, is also computed with all neurons, for TakeAudit; 0: none. Logits
  // stay as they are.
  void SetAudit(int64_t every);
  FfnAudit TakeAudit();  // of the rows since the last call

  // Of all generated rows since the last call, where FFNs stand in bundles and LoadOptions::count_firings says so.
  Firings TakeFirings();
  // Whether Reorder can do anything: a device computes beside the CPU, and no predictor names neurons.
  bool CanReorder() const;
  // Between steps, from any one thread: puts the neurons of a layer into another order, from the first of which on the
  // device has as many as before. `order` holds down in the type in which it is held now. Keys and values stay. Reads
  // the file again, and takes memory for the layer meanwhile. False where `stop` became true before anything was
  // changed. Throws Error where the file is gone or another one, or memory does not suffice; nothing has changed then.
  // Throws DeviceError when the device is lost, as the next Step says, too.
  bool Reorder(int layer, std::shared_ptr<const NeuronOrder> order, const std::atomic<bool>& stop);

  // What generated rows read of FFNs that are not dense (LoadOptions::ffn) since the last call.
  NeuronCount TakeNeuronCount();
  int64_t weight_bytes() const;  // packed
  int64_t kv_bytes_in_use() const;
  // Which kernel each kind of op takes, e.g. {"linear Q4_1", "avx512_vnni"}; what hot ops silently running the
  // reference would betray.
  std::vector<std::pair<std::string, std::string>> Kernels() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Bytes that the KV pages of one sequence of n_ctx tokens take in the end, and what the engine needs besides
// (weights as packed, scratch): for `inspect` and the default context.
int64_t KvBytes(const ModelConfig& config, KvTypes types, int n_ctx);
int64_t PackedWeightBytes(const Model& model);

}  // namespace thermocline
