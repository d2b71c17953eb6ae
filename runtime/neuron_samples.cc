#include "runtime/neuron_samples.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "cpu/isa.h"
#include "cpu/topology.h"
#include "cpu/vector_ops.h"
#include "models/error.h"
#include "runtime/progress.h"

namespace thermocline {
namespace {

constexpr int kRows = 64;            // of one step
constexpr double kMemoryPart = 0.2;  // of what is free, and no more than:
constexpr int64_t kMaxSampleBytes = int64_t{1} << 30;

// Keeps what the rows of the step at hand read and which neurons fired, until it is known which rows stay.
class Sampler {
 public:
  Sampler(Engine& engine, const Model& model, std::span<const float> levels, int64_t capacity)
      : engine_(engine),
        n_embd_(model.config.n_embd),
        n_ff_(model.config.n_ff),
        levels_(levels),
        capacity_(capacity),
        ops_(VectorOpsFor(ChooseIsa())),
        samples_(levels.size()),
        inputs_(levels.size(), std::vector<float>(static_cast<size_t>(kRows * n_embd_))),
        activations_(levels.size(), std::vector<float>(static_cast<size_t>(kRows * n_ff_))) {
    for (FiringSamples& samples : samples_) {
      samples.n_embd = n_embd_;
      samples.n_ff = n_ff_;
      samples.inputs.resize(static_cast<size_t>(capacity * n_embd_));
      samples.fired.resize(static_cast<size_t>(capacity * n_ff_ / 8));
    }
    engine.SetInputTap([this](const Op& op, int64_t row, std::span<const float> x) {
      if (op.kind == OpKind::kGatedAct)
        ops_.act(x.data(), static_cast<int>(n_ff_), op.activation, activations_[op.layer].data() + row * n_ff_);
      else if (op.kind == OpKind::kLinear && op.n_projections > 0 && op.projections[0].out == Slot::kGate)
        std::copy(x.begin(), x.end(), inputs_[op.layer].data() + row * n_embd_);
    });
  }
  ~Sampler() { engine_.SetInputTap({}); }

  // The n rows that the engine has just run: into free places, then into the place of another with a chance that
  // leaves all tokens equally likely (algorithm R).
  void Take(int n) {
    for (int row = 0; row < n; ++row) {
      const auto place = seen_ < capacity_ ? seen_ : static_cast<int64_t>(random_() % static_cast<uint64_t>(seen_ + 1));
      ++seen_;
      if (place >= capacity_) continue;
      for (size_t layer = 0; layer < samples_.size(); ++layer) Put(layer, row, place);
    }
  }

  std::vector<FiringSamples> Finish() {
    for (FiringSamples& samples : samples_) {
      samples.n = std::min(seen_, capacity_);
      samples.inputs.resize(static_cast<size_t>(samples.n * n_embd_));
      samples.fired.resize(static_cast<size_t>(samples.n * n_ff_ / 8));
    }
    return std::move(samples_);
  }

 private:
  void Put(size_t layer, int64_t row, int64_t place) {
    FiringSamples& samples = samples_[layer];
    const float* x = inputs_[layer].data() + row * n_embd_;
    uint16_t* input = samples.inputs.data() + place * n_embd_;
    bool numbers = true;
    for (int64_t i = 0; i < n_embd_; ++i) {
      numbers &= std::isfinite(x[i]);
      input[i] = FloatToHalf(std::clamp(x[i], -kMaxHalf, kMaxHalf));
    }
    const float* activation = activations_[layer].data() + row * n_ff_;
    uint8_t* fired = samples.fired.data() + place * n_ff_ / 8;
    for (int64_t i = 0; i < n_ff_; i += 8) {
      uint8_t bits = 0;
      for (int bit = 0; bit < 8; ++bit) {
        numbers &= std::isfinite(activation[i + bit]);
        bits |= static_cast<uint8_t>((std::abs(activation[i + bit]) > levels_[layer]) << bit);
      }
      fired[i / 8] = bits;
    }
    if (!numbers)
      throw Error("the model's activations are not numbers: the model file is damaged, or its numbers overflow");
  }

  static constexpr float kMaxHalf = 65504;
  Engine& engine_;
  const int64_t n_embd_, n_ff_;
  const std::span<const float> levels_;
  const int64_t capacity_;
  const VectorOps& ops_;
  std::vector<FiringSamples> samples_;
  std::vector<std::vector<float>> inputs_, activations_;  // by layer (kRows, n_embd), (kRows, n_ff)
  int64_t seen_ = 0;
  std::mt19937_64 random_{1};
};

}  // namespace

int64_t SampleBytes(const ModelConfig& config) {
  return int64_t{config.n_layer} * (2 * int64_t{config.n_embd} + config.n_ff / 8);
}

int64_t SampleMemory() {
  const auto free = static_cast<double>(DetectTopology().memory_available_bytes);
  return std::min(kMaxSampleBytes, static_cast<int64_t>(kMemoryPart * free));
}

std::vector<FiringSamples> CollectSamples(Engine& engine, const Model& model, std::span<const TokenId> tokens,
                                          std::span<const float> firing_levels, int64_t max_bytes) {
  const int64_t n = std::ssize(tokens), n_ctx = engine.n_ctx();
  if (n == 0) throw Error("a text holds no tokens: nothing can be learned from it, or judged by it");
  Sampler sampler(engine, model, firing_levels, std::clamp<int64_t>(max_bytes / SampleBytes(model.config), 1, n));
  Progress progress("sampling", "tokens");
  const int sequence = engine.NewSequence();
  Batch batch;
  for (int64_t at = 0; at < n;) {
    const int64_t position = at % n_ctx, rows = std::min({int64_t{kRows}, n_ctx - position, n - at});
    if (position == 0) engine.Truncate(sequence, 0);
    batch.clear();
    for (int64_t i = 0; i < rows; ++i)
      batch.push_back({tokens[at + i], sequence, static_cast<int>(position + i), RowKind::kPrompt, false});
    engine.Step(batch);
    sampler.Take(static_cast<int>(rows));
    at += rows;
    progress.Update(at, n);
  }
  engine.FreeSequence(sequence);
  return sampler.Finish();
}

}  // namespace thermocline
