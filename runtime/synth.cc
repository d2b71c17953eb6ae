#include "runtime/synth.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "models/check.h"
#include "models/error.h"
#include "models/gguf_writer.h"
#include "models/hash.h"
#include "models/quantize.h"
#include "runtime/progress.h"
#include "runtime/quantizer.h"
#include "runtime/synth_sparsity.h"

namespace thermocline {
namespace {

constexpr SynthShape kShapes[] = {
    {"tiny", 512, 1024, 4, 8, 4},     // for tests
    {"1b", 2048, 5632, 22, 32, 4},    // TinyLlama
    {"3b", 3072, 8192, 28, 24, 8},    // Llama 3.2 3B
    {"7b", 4096, 11008, 32, 32, 32},  // Llama 2 7B
    {"8b", 4096, 14336, 32, 32, 8},   // Llama 3 8B
};
constexpr DType kTypes[] = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ4_K,
                            DType::kQ5_K, DType::kQ6_K, DType::kF16,  DType::kBF16, DType::kF32};
constexpr int kContext = 8192;
constexpr float kNormEps = 1e-5f, kRopeBase = 10000;
constexpr uint64_t kAlignment = 32;
constexpr std::string_view kName = "synthetic ";

// Rows are put together from units of at least so many weights, drawn from a pool of so many weights.
constexpr int kUnit = 32, kPoolWeights = 1 << 17;
constexpr size_t kBufferBytes = 4 << 20;
// A gate's row in a planted model: kRanges runs of units, each out of one of kTopics directions, but this share of the
// units is the neuron's own.
constexpr int kRanges = 8, kTopics = 8;
constexpr double kOwnUnits = 0.1;
// With kTopics tokens of a kind have this share of their embedding in common.
constexpr double kSharedUnits = 0.25;

class Random {  // SplitMix64
 public:
  explicit Random(uint64_t state) : state_(state) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>((Next() >> 32) * n >> 32); }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }
  float Normal() {
    const double angle = 2 * M_PI * Uniform();  // drawn first, whatever order a compiler evaluates factors in
    return static_cast<float>(std::sqrt(-2 * std::log(Uniform())) * std::cos(angle));
  }

 private:
  uint64_t state_;
};

Random RandomOf(uint64_t seed, std::string_view what) {
  Hash hash;
  hash.Add(seed);
  hash.Add({reinterpret_cast<const uint8_t*>(what.data()), what.size()});
  return Random(hash.value());
}

int UnitWeights(DType type) { return std::max(kUnit, Info(type).block); }
size_t UnitBytes(DType type) {
  return static_cast<size_t>(UnitWeights(type) / Info(type).block * Info(type).block_bytes);
}

// Normal weights with a root mean square of exactly `deviation`, so that all rows are of one length.
void FillNormals(Random& random, double deviation, std::span<float> out) {
  double squares = 0;
  for (float& x : out) {
    x = random.Normal();
    squares += double{x} * x;
  }
  for (float& x : out) x *= static_cast<float>(deviation * std::sqrt(static_cast<double>(out.size()) / squares));
}

// Encoded random units, of which the last `n_zeros` weights are 0.
class Pool {
 public:
  Pool(DType type, double deviation, int n_zeros, Random random)
      : n_units_(kPoolWeights / UnitWeights(type)), unit_bytes_(UnitBytes(type)), bytes_(n_units_ * unit_bytes_) {
    std::vector<float> unit(static_cast<size_t>(UnitWeights(type)));
    for (size_t i = 0; i < n_units_; ++i) {
      FillNormals(random, deviation, std::span(unit).first(unit.size() - static_cast<size_t>(n_zeros)));
      Quantize(type, unit.data(), nullptr, static_cast<int64_t>(unit.size()), bytes_.data() + i * unit_bytes_);
    }
  }
  const uint8_t* Draw(Random& random) const {
    return bytes_.data() + random.Below(static_cast<uint32_t>(n_units_)) * unit_bytes_;
  }

 private:
  size_t n_units_, unit_bytes_;
  std::vector<uint8_t> bytes_;
};

struct SynthTensor {
  enum class Kind : uint8_t { kNorm, kEmbedding, kFromState, kToState, kGate } kind;
  std::string name;
  DType type;
  int64_t k, n;  // n = 1: a norm
  double deviation = 0;
  double state_deviation = 0;  // kGate
};

class Synthesizer {
 public:
  Synthesizer(const SynthOptions& options, const GgufFile& vocabulary, OutputFile& out);
  void Write();

 private:
  void ListTensors();
  void AddMetadata(GgufHeader& header) const;
  void WriteTensor(const SynthTensor& tensor);
  void FillRow(const SynthTensor& tensor, int64_t row, uint8_t* out);
  void PrepareGates(const SynthTensor& tensor);
  void FillGate(const SynthTensor& tensor, int64_t neuron, uint8_t* out);
  const Pool& PoolOf(const SynthTensor& tensor, int n_zeros);
  bool IsWord(int64_t token) const;

  const SynthOptions& options_;
  const SynthShape& shape_;
  const GgufFile& vocabulary_;
  OutputFile& out_;
  const bool planted_;
  int64_t n_vocab_;
  std::vector<SynthTensor> tensors_;
  Random random_{0};                                      // of the tensor at hand
  std::map<std::tuple<DType, double, int>, Pool> pools_;  // of the layer at hand

  std::vector<double> quantiles_;  // of the neurons' gates, the hottest first
  double mean_rectified_square_ = 0;
  std::vector<int> heat_rank_;   // by neuron of the layer at hand
  std::vector<uint8_t> topics_;  // (kTopics, a row's units but the last), encoded
};

Synthesizer::Synthesizer(const SynthOptions& options, const GgufFile& vocabulary, OutputFile& out)
    : options_(options),
      shape_(options.shape),
      vocabulary_(vocabulary),
      out_(out),
      planted_(options.sparsity.has_value()) {
  CHECK(!planted_ || options.activation == Activation::kRelu);
  const GgufArray* tokens = vocabulary.FindArray("tokenizer.ggml.tokens", GgufArray::Kind::kString);
  if (tokens == nullptr || tokens->size() == 0)
    throw Error("{}: has no vocabulary that a model could take. Name another file.", vocabulary.path());
  n_vocab_ = static_cast<int64_t>(tokens->size());
  if (planted_) {
    for (const double frequency : FiringFrequencies(shape_.n_ff, *options.sparsity, options.heat)) {
      quantiles_.push_back(NormalQuantile(frequency));
      mean_rectified_square_ += RectifiedSquare(quantiles_.back()) / shape_.n_ff;
    }
  }
  ListTensors();
}

void Synthesizer::ListTensors() {
  using Kind = SynthTensor::Kind;
  const int64_t n_embd = shape_.n_embd, n_ff = shape_.n_ff, n_kv = n_embd / shape_.n_head * shape_.n_head_kv;
  const DType type = options_.type;
  const double reads = 1 / std::sqrt(static_cast<double>(planted_ ? n_embd - kConstants : n_embd));
  const auto norm = [&](std::string name) {
    tensors_.push_back({.kind = Kind::kNorm, .name = std::move(name), .type = DType::kF32, .k = n_embd, .n = 1});
  };
  tensors_.push_back({.kind = Kind::kEmbedding,
                      .name = "token_embd.weight",
                      .type = planted_ ? DType::kQ8_0 : type,
                      .k = n_embd,
                      .n = n_vocab_,
                      .deviation = 1});
  for (int layer = 0; layer < shape_.n_layer; ++layer) {
    SynthLayer plan{.state_deviation = 1,
                    .output_weight_deviation = 1 / std::sqrt(static_cast<double>(n_embd)),
                    .down_weight_deviation = 1 / std::sqrt(static_cast<double>(n_ff))};
    if (planted_) plan = PlanSynthLayer(shape_, layer, mean_rectified_square_);
    const auto name = [&](std::string_view part) { return fmt::format("blk.{}.{}.weight", layer, part); };
    const auto matrix = [&](Kind kind, std::string_view part, int64_t k, int64_t n, double deviation) {
      tensors_.push_back({kind, name(part), type, k, n, deviation, plan.state_deviation});
    };
    norm(name("attn_norm"));
    matrix(Kind::kFromState, "attn_q", n_embd, n_embd, reads);
    matrix(Kind::kFromState, "attn_k", n_embd, n_kv, reads);
    matrix(Kind::kFromState, "attn_v", n_embd, n_kv, reads);
    matrix(Kind::kToState, "attn_output", n_embd, n_embd, plan.output_weight_deviation);
    norm(name("ffn_norm"));
    matrix(planted_ ? Kind::kGate : Kind::kFromState, "ffn_gate", n_embd, n_ff, reads);
    matrix(Kind::kFromState, "ffn_up", n_embd, n_ff, reads);
    matrix(Kind::kToState, "ffn_down", n_ff, n_embd, plan.down_weight_deviation);
  }
  norm("output_norm.weight");
  tensors_.push_back({Kind::kFromState, "output.weight", DType::kQ8_0, n_embd, n_vocab_, reads});
}

void Synthesizer::AddMetadata(GgufHeader& header) const {
  const auto number = [&](std::string_view name, int value) {
    header.AddU32(fmt::format("llama.{}", name), static_cast<uint32_t>(value));
  };
  header.AddText("general.architecture", "llama");
  header.AddText("general.name", SynthName(options_));
  number("block_count", shape_.n_layer);
  number("context_length", kContext);
  number("embedding_length", shape_.n_embd);
  number("feed_forward_length", shape_.n_ff);
  number("attention.head_count", shape_.n_head);
  number("attention.head_count_kv", shape_.n_head_kv);
  number("rope.dimension_count", shape_.n_embd / shape_.n_head);
  number("vocab_size", static_cast<int>(n_vocab_));
  header.AddF32("llama.attention.layer_norm_rms_epsilon", kNormEps);
  header.AddF32("llama.rope.freq_base", kRopeBase);
  if (options_.activation != FindArch("llama")->activation)
    header.AddText("thermocline.activation", Name(options_.activation));
  if (planted_) header.AddF32("thermocline.synthetic.sparsity", static_cast<float>(*options_.sparsity));
  header.AddU32("general.quantization_version", kQuantizationVersion);
  header.AddU32("general.file_type", FileType(options_.type));
  for (size_t i = 0; i < vocabulary_.metadata().size(); ++i)
    if (vocabulary_.metadata()[i].first.starts_with("tokenizer.")) header.AddRaw(vocabulary_.RawMetadata(i));
}

void Synthesizer::Write() {
  GgufHeader header;
  AddMetadata(header);
  for (const SynthTensor& tensor : tensors_) {
    const int64_t ne[] = {tensor.k, tensor.n};
    header.AddTensor(tensor.name, tensor.type, std::span(ne).first(tensor.n == 1 ? 1 : 2));
  }
  const GgufLayout layout = header.LayOut(kAlignment);
  Progress progress("writing", "");
  out_.Write(layout.header);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    out_.Pad(layout.offsets[i]);
    WriteTensor(tensors_[i]);
    progress.Update(static_cast<int64_t>(out_.size()), static_cast<int64_t>(layout.file_bytes));
  }
  out_.Pad(layout.file_bytes);
}

void Synthesizer::WriteTensor(const SynthTensor& tensor) {
  random_ = RandomOf(options_.seed, tensor.name);
  if (tensor.kind == SynthTensor::Kind::kGate) PrepareGates(tensor);
  const size_t row_bytes = static_cast<size_t>(tensor.k / UnitWeights(tensor.type)) * UnitBytes(tensor.type);
  std::vector<uint8_t> buffer;
  for (int64_t row = 0; row < tensor.n; ++row) {
    buffer.resize(buffer.size() + row_bytes);
    FillRow(tensor, row, buffer.data() + buffer.size() - row_bytes);
    if (buffer.size() < kBufferBytes && row + 1 < tensor.n) continue;
    out_.Write(buffer);
    buffer.clear();
  }
  if (tensor.kind == SynthTensor::Kind::kToState) pools_.clear();  // whose deviation is this layer's
}

// A planted model's products leave the constants alone: columns that would read them and rows that would write them are
// 0.
void Synthesizer::FillRow(const SynthTensor& tensor, int64_t row, uint8_t* out) {
  using Kind = SynthTensor::Kind;
  if (tensor.kind == Kind::kGate) return FillGate(tensor, row, out);
  if (tensor.kind == Kind::kNorm) {
    const std::vector<float> ones(static_cast<size_t>(tensor.k), 1);
    return Quantize(tensor.type, ones.data(), nullptr, tensor.k, out);
  }
  const int unit = UnitWeights(tensor.type);
  const size_t unit_bytes = UnitBytes(tensor.type);
  const bool writes_constant = planted_ && tensor.kind == Kind::kToState && row >= tensor.n - kConstants;
  const Pool& pool = PoolOf(tensor, writes_constant ? unit : 0);
  const Pool& last_pool = planted_ && tensor.kind == Kind::kFromState ? PoolOf(tensor, kConstants) : pool;
  const int64_t n_units = tensor.k / unit;
  const bool has_topic = tensor.kind == Kind::kEmbedding && planted_ && options_.heat == PlantedHeat::kTopics;
  const auto n_shared = static_cast<int64_t>(has_topic ? kSharedUnits * static_cast<double>(n_units) : 0);
  Random of_topic = RandomOf(options_.seed, has_topic && IsWord(row) ? "words" : "others");
  for (int64_t i = 0; i < n_units; ++i, out += unit_bytes)
    std::memcpy(out, (i + 1 < n_units ? pool : last_pool).Draw(i < n_shared ? of_topic : random_), unit_bytes);
  if (planted_ && tensor.kind == Kind::kEmbedding) {
    const std::vector<float> ones(kConstants, 1);
    Quantize(tensor.type, ones.data(), nullptr, kConstants, out - unit_bytes);
  }
}

// Small letters alone, but for the mark of a space in front.
bool Synthesizer::IsWord(int64_t token) const {
  std::string_view text = vocabulary_.FindArray("tokenizer.ggml.tokens", GgufArray::Kind::kString)->strings[token];
  for (const std::string_view space : {"\u0120", "\u2581"})  // of byte-level BPE, of SentencePiece
    if (text.starts_with(space)) text.remove_prefix(space.size());
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= 'a' && c <= 'z'; });
}

void Synthesizer::PrepareGates(const SynthTensor& tensor) {
  heat_rank_.resize(static_cast<size_t>(tensor.n));
  std::iota(heat_rank_.begin(), heat_rank_.end(), 0);
  for (size_t i = heat_rank_.size() - 1; options_.heat != PlantedHeat::kSorted && i > 0; --i)
    std::swap(heat_rank_[i], heat_rank_[random_.Below(static_cast<uint32_t>(i + 1))]);
  const size_t unit_bytes = UnitBytes(tensor.type);
  const auto n_shared = static_cast<size_t>(tensor.k / UnitWeights(tensor.type) - 1);
  topics_.resize(kTopics * n_shared * unit_bytes);
  for (size_t i = 0; i < kTopics * n_shared; ++i)
    std::memcpy(topics_.data() + i * unit_bytes, PoolOf(tensor, 0).Draw(random_), unit_bytes);
}

// The last unit holds the weights of the constants, and is the neuron's own.
void Synthesizer::FillGate(const SynthTensor& tensor, int64_t neuron, uint8_t* out) {
  const size_t unit_bytes = UnitBytes(tensor.type);
  const auto n_shared = static_cast<size_t>(tensor.k / UnitWeights(tensor.type) - 1);
  const size_t n_ranges = std::min<size_t>(kRanges, n_shared);
  const Pool& pool = PoolOf(tensor, 0);
  size_t topic = 0;
  for (size_t i = 0, range = n_ranges; i < n_shared; ++i, out += unit_bytes) {
    const size_t next = i * n_ranges / n_shared;
    if (next != range) topic = random_.Below(kTopics);
    range = next;
    const bool own = random_.Uniform() < kOwnUnits;
    std::memcpy(out, own ? pool.Draw(random_) : topics_.data() + (topic * n_shared + i) * unit_bytes, unit_bytes);
  }
  std::vector<float> last(static_cast<size_t>(UnitWeights(tensor.type)));
  const auto [own, constants] =
      std::pair(std::span(last).first(last.size() - kConstants), std::span(last).last(kConstants));
  FillNormals(random_, tensor.deviation, own);
  // What varies in the gate has a deviation of state_deviation in front of the norm, which shifts no sign.
  const double shift =
      -quantiles_[static_cast<size_t>(heat_rank_[static_cast<size_t>(neuron)])] * tensor.state_deviation;
  std::ranges::fill(constants, static_cast<float>(shift / kConstants));
  Quantize(tensor.type, last.data(), nullptr, static_cast<int64_t>(last.size()), out);
}

const Pool& Synthesizer::PoolOf(const SynthTensor& tensor, int n_zeros) {
  const auto key = std::tuple(tensor.type, tensor.deviation, n_zeros);
  const auto found = pools_.find(key);
  if (found != pools_.end()) return found->second;
  const Random random =
      RandomOf(options_.seed, fmt::format("{} {} {}", Info(tensor.type).name, tensor.deviation, n_zeros));
  return pools_.emplace(key, Pool(tensor.type, tensor.deviation, n_zeros, random)).first->second;
}

}  // namespace

std::span<const SynthShape> SynthShapes() { return kShapes; }
std::span<const DType> SynthTypes() { return kTypes; }
std::string_view Name(PlantedHeat heat) {
  switch (heat) {
    case PlantedHeat::kFlat: return "flat";
    case PlantedHeat::kZipf: return "zipf";
    case PlantedHeat::kSorted: return "sorted";
    case PlantedHeat::kTopics: return "topics";
  }
  return "";
}

std::string SynthName(const SynthOptions& options) {
  std::string name = fmt::format("{}{} {}", kName, options.shape.name, Info(options.type).name);
  if (options.activation != FindArch("llama")->activation) name += fmt::format(" {}", Name(options.activation));
  if (options.sparsity)
    name += fmt::format(", {:.6g} % silent by {} heat", 100 * *options.sparsity, Name(options.heat));
  return name + ", random weights";
}

bool IsSynthetic(const GgufFile& file) {
  const GgufValue* name = file.Find("general.name");
  const auto* text = name != nullptr ? std::get_if<std::string_view>(name) : nullptr;
  return text != nullptr && text->starts_with(kName);
}

void WriteSynth(const SynthOptions& options, const GgufFile& vocabulary, OutputFile& out) {
  Synthesizer(options, vocabulary, out).Write();
}

}  // namespace thermocline
