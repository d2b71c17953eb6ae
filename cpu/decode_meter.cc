#include "cpu/decode_meter.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <random>

#include "cpu/activations.h"
#include "cpu/attention.h"
#include "cpu/packed.h"
#include "cpu/panel_chunks.h"
#include "cpu/predicted_gate.h"
#include "cpu/sparse_ffn.h"
#include "models/check.h"

namespace thermocline {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMeterBytes = int64_t{1} << 30;  // far beyond every cache
constexpr double kPatience = 0.06;                 // seconds of runs of one thing
constexpr int kMinRuns = 9, kMaxRuns = 100;

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

int64_t WeightBytes(const Model& model) {
  int64_t bytes = 0;
  for (const Weight& weight : model.weights)
    if (weight.matrix) bytes += PackedMatrix::BytesFor(weight.type(), weight.n, weight.k);
  return bytes;
}

}  // namespace

DecodeMeter::DecodeMeter(const Model& model, Team& team, Isa isa)
    : model_(model), team_(team), isa_(isa), ops_(VectorOpsFor(isa)) {
  int64_t largest = 0;
  for (const Op& op : model.program.ops) {
    int64_t bytes = 0;
    for (int i = 0; i < op.n_projections; ++i) {
      const Weight& weight = model.weights[op.projections[i].weight];
      bytes += PackedMatrix::BytesFor(weight.type(), weight.n, weight.k);
    }
    largest = std::max(largest, bytes);
  }
  // Bundles are padded, and may have wider types.
  for (const GatedFfn& ffn : FindSparseFfns(model, FfnMode::kThreshold)) {
    const Weight &gate = model.weights[ffn.gate], &up = model.weights[ffn.up], &down = model.weights[ffn.down];
    const BundleShape bundles{BundleShape::UpType(up.type()), BundleShape::DownType(down.type()), up.k, up.n};
    largest = std::max(
        {largest, bundles.bytes(), BundleShape::Rows(BundleShape::UpType(gate.type()), gate.k, gate.n).bytes()});
  }
  weights_ = Buffer(std::clamp(WeightBytes(model), 2 * largest, std::max(kMeterBytes, 2 * largest)), "measuring");
  team_.Run([&](Team::Member& member) {  // every byte a number, as codes and as scales
    member.For(weights_.bytes(), int64_t{1} << 20,
               [&](int64_t begin, int64_t end) { std::memset(weights_.data() + begin, 0x11, end - begin); });
  });
  int64_t width = 1;
  for (const int slot : model.program.width) width = std::max<int64_t>(width, slot);
  in_ = Buffer(std::max<int64_t>(ActivationRowBytes(width), width * 4) + 64, "measuring");
  out_ = Buffer(std::max<int64_t>(ActivationRowBytes(width), width * 4) + 1024, "measuring");
  std::fill_n(in_.as<float>(), width, 0.5f);
}

// `run(member, weights)` by all members; `weights` are `bytes` that were not read for long.
template <typename Run>
double DecodeMeter::Time(int64_t bytes, const Run& run) {
  CHECK(bytes <= weights_.bytes());
  std::vector<double> seconds;
  const Clock::time_point first = Clock::now();
  team_.Run([&](Team::Member& member) { run(member, weights_.data()); });  // code and scratch into caches
  while (std::ssize(seconds) < kMinRuns || (std::ssize(seconds) < kMaxRuns && SecondsSince(first) < kPatience)) {
    // Several at a time: between the ops of a step the team stays awake.
    constexpr int kTogether = 4;
    std::array<const uint8_t*, kTogether> at;
    for (const uint8_t*& begin : at) {
      if (at_ + bytes > weights_.bytes()) at_ = 0;
      begin = weights_.data() + at_;
      at_ += (bytes + 63) / 64 * 64;
    }
    const Clock::time_point start = Clock::now();
    team_.Run([&](Team::Member& member) {
      for (const uint8_t* begin : at) run(member, begin);
    });
    seconds.push_back(SecondsSince(start) / kTogether);
  }
  return Median(seconds);
}

template <typename Run>
double DecodeMeter::TimeRow(const Run& run) {
  constexpr int kRepeats = 16, kRuns = 15;
  std::vector<double> seconds;
  for (int i = 0; i < kRuns; ++i) {
    const Clock::time_point start = Clock::now();
    for (int j = 0; j < kRepeats; ++j) run();
    seconds.push_back(SecondsSince(start) / kRepeats);
  }
  return Median(seconds);
}

// Reads as much as a step reads in weights, so that caches hold little else; then `then`.
template <typename Then>
void DecodeMeter::Evict(Team::Member& member, const Then& then) {
  member.For(
      weights_.bytes() / 64, 1 << 14,
      [&](int64_t begin, int64_t end) {
        int64_t sum = 0;
        for (int64_t line = begin; line < end; ++line) sum += weights_.data()[64 * line];
        evicted_ += sum;
      },
      then);
}

double DecodeMeter::Product(const Op& op, int begin, int end) {
  struct Part {
    DType type;
    int64_t n, k, n_panels, offset;
    const LinearKernel* kernel;  // null: floats
  };
  std::vector<Part> parts;
  std::vector<int64_t> key;
  int64_t bytes = 0, n_panels = 0;
  for (int i = begin; i < end; ++i) {
    const Weight& weight = model_.weights[op.projections[i].weight];
    const DType type = weight.type();
    const PackedFormat* format = FindPackedFormat(type);
    if (format) kernels_.try_emplace(type, isa_, *format);
    const int64_t panels = (weight.n + kPanelRows - 1) / kPanelRows;
    parts.push_back({type, weight.n, weight.k, panels, bytes, format ? &kernels_.at(type) : nullptr});
    for (const int64_t number : {static_cast<int64_t>(type), weight.n, weight.k}) key.push_back(number);
    bytes += PackedMatrix::BytesFor(type, weight.n, weight.k);
    n_panels += panels;
  }
  if (const auto known = known_.find(key); known != known_.end()) return known->second;
  const int64_t grain = MakePanelChunks(n_panels, bytes, 1, PromptForm::kPlanes, team_.size()).grain;
  float* y = out_.as<float>();
  const auto project = [&](const Part& part, const uint8_t* weights, int64_t from, int64_t to) {
    if (!part.kernel) {
      const int64_t stride = PackedStride(part.type, part.k), first = from * kPanelRows;
      ops_.float_gemv(part.type, weights + part.offset + first * stride, stride,
                      std::min(to * kPanelRows, part.n) - first, part.k, in_.as<float>(), y + first);
      return;
    }
    const PackedFormat& format = *FindPackedFormat(part.type);
    const int64_t n_blocks = (part.k + format.block_k() - 1) / format.block_k();
    part.kernel->Run({weights + part.offset + from * n_blocks * format.block_bytes(), in_.data(),
                      ActivationRowBytes(part.k), y + from * kPanelRows, 0, to - from, n_blocks, 0},
                     1);
  };
  const double seconds = Time(bytes, [&](Team::Member& member, const uint8_t* weights) {
    member.For(n_panels, grain, [&](int64_t from, int64_t to) {
      for (const Part& part : parts) {
        if (from < part.n_panels && from < to) project(part, weights, from, std::min(to, part.n_panels));
        from = std::max<int64_t>(0, from - part.n_panels);
        to -= part.n_panels;
      }
    });
  });
  return known_[key] = seconds;
}

double DecodeMeter::Row(const Op& op) {
  const ModelConfig& config = model_.config;
  const auto width = [&](Slot slot) { return model_.program.width[static_cast<size_t>(slot)]; };
  float *in = in_.as<float>(), *out = out_.as<float>();
  switch (op.kind) {
    case OpKind::kNorm:
      if (op.bias >= 0) return TimeRow([&] { ops_.layer_norm(in, in, in, 1e-5f, width(op.in), out); });
      return TimeRow([&] { ops_.rms_norm(in, in, 1e-5f, width(op.in), false, out); });
    case OpKind::kHeadNorm:
      return TimeRow([&] {
        for (int i = 0; i < width(op.out); i += config.head_dim)
          ops_.rms_norm(in + i, in, 1e-5f, config.head_dim, false, out + i);
      });
    case OpKind::kRope:
      return TimeRow([&] {
        for (int i = 0; i < width(op.out); i += config.head_dim) ops_.rope(out + i, in, config.rope_dims, op.rope);
      });
    case OpKind::kGatedAct: return TimeRow([&] { ops_.gated_act(in, in, width(op.in), op.activation, out); });
    case OpKind::kAct: return TimeRow([&] { ops_.act(in, width(op.in), op.activation, out); });
    case OpKind::kLinear: {
      bool packed = false;
      for (int i = 0; i < op.n_projections; ++i)
        packed |= FindPackedFormat(model_.weights[op.projections[i].weight].type()) != nullptr;
      return packed ? TimeRow([&] { ops_.quantize(in, width(op.in), kAllGroups, out_.data()); }) : 0;
    }
    default: return 0;
  }
}

double DecodeMeter::Neurons(const BundleShape& shape, double active) {
  const BundleKernel kernel(isa_, shape);
  std::mt19937 random(1);
  std::vector<float> activation(static_cast<size_t>(shape.n_ff));
  for (float& value : activation) value = random() < active * std::mt19937::max() ? 1.f : 0.f;
  const Buffer spread(SpreadBytes(shape.n_embd), "measuring");
  const Buffer partial(shape.n_slices() * shape.n_outputs() * static_cast<int64_t>(sizeof(float)), "measuring");
  const BundleRow row{activation.data(), spread.data(), partial.as<float>()};
  return Time(shape.bytes(), [&](Team::Member& member, const uint8_t* weights) {
    const Bundles bundles(shape, const_cast<uint8_t*>(weights));  // which are only read
    member.For(shape.n_slices(), 1, [&](int64_t slice, int64_t) {
      NeuronCount count;
      RunSlice(kernel, bundles, slice, {&row, 1}, {}, count);
    });
    member.For(shape.n_embd, SparseFfn::kMergeGrain, [&](int64_t begin, int64_t end) {
      MergeSlices(shape, partial.as<float>(), false, begin, end, out_.as<float>());
    });
  });
}

double DecodeMeter::PredictedGates(const BundleShape& gates, int64_t rank, double named) {
  const auto rows = [](int64_t n, int64_t k) {
    return std::vector<uint8_t>(static_cast<size_t>(n * FileRowBytes(DType::kQ8_0, k)));
  };
  std::mt19937 random(1);
  NeuronPredictor predictor{.rank = rank, .in = rows(rank, gates.n_embd), .out = rows(gates.n_ff, rank)};
  for (int64_t i = 0; i < gates.n_ff; ++i)
    predictor.bias.push_back(random() < named * std::mt19937::max() ? 1.f : -1.f);
  // All layers in turn, as a step reads them.
  const int64_t bytes = (gates.bytes() + 63) / 64 * 64;
  CHECK(bytes <= weights_.bytes());
  const int64_t n = std::clamp<int64_t>(weights_.bytes() / bytes, 1, model_.config.n_layer);
  std::vector<Bundles> layers;
  for (int64_t i = 0; i < n; ++i) layers.emplace_back(gates, weights_.data() + i * bytes);
  PredictedGate gate(isa_, 1, team_.size());
  for (const Bundles& layer : layers) gate.Add(layer, predictor, Activation::kRelu);
  gate.FinishAdding();
  const Buffer x(ActivationRowBytes(gates.n_embd), "measuring"), spread(SpreadBytes(gates.n_embd), "measuring");
  const RowRun run{0, 1};
  const PredictedGate::Rows row{{&run, 1}, x.data(), spread.data(), out_.as<float>(), gates.n_ff, -1};
  std::vector<NeuronCount> counts(static_cast<size_t>(team_.size()));
  std::vector<NeuronCount*> of_members;
  for (NeuronCount& count : counts) of_members.push_back(&count);
  std::vector<double> seconds;
  const Clock::time_point first = Clock::now();
  while (std::ssize(seconds) < kMinRuns || (std::ssize(seconds) < kMaxRuns && SecondsSince(first) < kPatience)) {
    const Clock::time_point start = Clock::now();
    team_.Run([&](Team::Member& member) {
      for (int i = 0; i < n; ++i) gate.Run(member, i, row, of_members, [] {});
    });
    seconds.push_back(SecondsSince(start) / static_cast<double>(n));
  }
  return Median(seconds);
}

double DecodeMeter::Spread(const BundleShape& shape) {
  const Buffer spread(SpreadBytes(shape.n_embd), "measuring");
  return TimeRow([&] { SpreadActivations(in_.data(), shape.n_embd, spread.data()); });
}

std::vector<double> DecodeMeter::Attention(KvTypes types, int n_tokens) {
  const ModelConfig& config = model_.config;
  const KvLayout layout(config, types);
  std::array<std::vector<uint8_t*>, kLayerKinds> pages;
  std::array<Buffer, kLayerKinds> memory;
  StepView step{};
  SpanView span{0, 1, n_tokens - 1, {}};
  for (int kind = 0; kind < kLayerKinds; ++kind) {
    const int64_t n = (n_tokens + kPageTokens - 1) / kPageTokens;
    if (layout.page_bytes[kind] == 0) continue;
    memory[kind] = Buffer(n * layout.page_bytes[kind], "measuring");
    std::memset(memory[kind].data(), 0, memory[kind].bytes());
    for (int64_t i = 0; i < n; ++i) pages[kind].push_back(memory[kind].data() + i * layout.page_bytes[kind]);
    span.pages[kind] = pages[kind].data();
  }
  const uint8_t generated = 0;
  step.prompt = {&generated, 1};
  step.spans = {&span, 1};
  thermocline::Attention attention(ops_, config, layout, 1, team_.size());
  attention.Prepare(step);
  const auto width = [&](Slot slot) { return model_.program.width[static_cast<size_t>(slot)]; };
  std::vector<double> seconds;
  std::map<int, double> by_window;
  std::vector<AttentionIo> ios;
  for (const Op& op : model_.program.ops)
    if (op.kind == OpKind::kAttention)
      ios.push_back({in_.as<float>(), width(Slot::kQuery), out_.as<float>(), width(op.out), op.window, op.scale,
                     layout.layers[op.layer]});
  // All layers in turn, as a step reads them, those of one window at a time; before each pass other weights were read.
  for (const AttentionIo& io : ios) {
    if (by_window.contains(io.window)) continue;
    std::vector<double> passes;
    int64_t alike = 0;
    for (const AttentionIo& other : ios) alike += other.window == io.window;
    for (int pass = 0; pass < kMinRuns; ++pass) {
      Clock::time_point start;
      team_.Run([&](Team::Member& member) {  // one run, in which the team stays awake
        Evict(member, [&] { start = Clock::now(); });
        for (const AttentionIo& other : ios)
          if (other.window == io.window) attention.Run(member, other, [] {});
      });
      passes.push_back(SecondsSince(start) / static_cast<double>(alike));
    }
    by_window[io.window] = Median(passes);
  }
  for (const AttentionIo& io : ios) seconds.push_back(by_window[io.window]);
  return seconds;
}

}  // namespace thermocline
