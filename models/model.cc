#include "models/model.h"

#include <cmath>
#include <unordered_set>

#include "models/advice.h"
#include "models/check.h"
#include "models/error.h"
#include "models/limits.h"
#include "models/model_config.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

// Op::large_group, by what they cost and what they gain (HACKING.md "Numerics").
constexpr float kLargeGroup = 2, kLargeGroupOfQkv = 1.25f;

// Finds tensors by name, checks their shapes and writes the program, op by op.
class Builder {
 public:
  Builder(const GgufFile& file, Model& model) : file_(file), model_(model), config_(model.config) {}

  void Build();
  void RefuseUnusedTensors() const;

 private:
  const Tensor& Require(const std::string& name) const;
  WeightId Add(const Tensor& tensor, bool matrix);
  void CheckShape(const Tensor& tensor, int64_t n, int64_t k) const;  // as it stands in the file
  WeightId Matrix(const std::string& name, int64_t n, int64_t k);
  WeightId Transposed(const std::string& name, int64_t n, int64_t k);
  WeightId Vector(const std::string& name, int64_t n);
  WeightId OptionalVector(const std::string& name, int64_t n) {
    return file_.FindTensor(name) == nullptr ? WeightId{-1} : Vector(name, n);
  }
  // "blk.3.attn_q"
  std::string Name(int layer, std::string_view part) const { return fmt::format("blk.{}.{}", layer, part); }

  void ReadVocabulary();
  void ReadRopeFactors();
  void SetWidths();
  void Embed();
  void Layer(int layer);
  void Attention(int layer);
  void FeedForward(int layer);
  void Predictors();
  void Head();

  Op& Emit(OpKind kind, int layer, Slot in, Slot out);
  void Norm(int layer, Slot in, Slot out, bool accumulate, const std::string& name);
  void HeadNorm(int layer, Slot inout, const std::string& weight);
  void Rope(int layer, Slot inout);
  // One product whose result joins the residual, through a norm where the architecture has post norms.
  void Residual(int layer, Slot in, int64_t k, const std::string& product, const std::string& post_norm);
  Projection Project(const std::string& name, int64_t n, int64_t k, Slot out);

  const GgufFile& file_;
  Model& model_;
  ModelConfig& config_;
  WeightId embedding_ = -1;
  WeightId rope_factors_ = -1;
  std::unordered_set<const Tensor*> used_;
};

const Tensor& Builder::Require(const std::string& name) const {
  const Tensor* tensor = file_.FindTensor(name);
  if (tensor == nullptr) throw Error("{}: tensor {} is missing. {}", file_.path(), Quoted(name), kDamagedOrUnsupported);
  return *tensor;
}

WeightId Builder::Add(const Tensor& tensor, bool matrix) {
  used_.insert(&tensor);
  model_.weights.push_back(
      {.tensor = &tensor, .matrix = matrix, .n = matrix ? tensor.ne[1] : tensor.ne[0], .k = matrix ? tensor.ne[0] : 1});
  CHECK(model_.weights.size() <= INT16_MAX);  // kMaxLayers times the most that a layer has
  return static_cast<WeightId>(model_.weights.size() - 1);
}

void Builder::CheckShape(const Tensor& tensor, int64_t n, int64_t k) const {
  if (tensor.ne[0] == k && tensor.ne[1] == n && tensor.ne[2] == 1 && tensor.ne[3] == 1) return;
  throw Error("{} has the shape {}, not {} x {} as the metadata says. {}", file_.Where(tensor),
              fmt::join(tensor.ne, " x "), k, n, kDamagedOrUnsupported);
}

WeightId Builder::Matrix(const std::string& name, int64_t n, int64_t k) {
  const Tensor& tensor = Require(name);
  CheckShape(tensor, n, k);
  return Add(tensor, true);
}

WeightId Builder::Transposed(const std::string& name, int64_t n, int64_t k) {
  const Tensor& tensor = Require(name);
  CheckShape(tensor, k, n);
  const WeightId id = Add(tensor, true);
  Weight& weight = model_.weights.back();
  weight.transposed = true;
  std::swap(weight.n, weight.k);
  if (k % Info(weight.type()).block != 0)
    throw Error("{} has {} rows, no multiple of {}, and cannot be quantized along them. {}", file_.Where(tensor), k,
                Info(weight.type()).block, kOtherModel);
  return id;
}

WeightId Builder::Vector(const std::string& name, int64_t n) {
  const Tensor& tensor = Require(name);
  if (tensor.ne[0] != n || tensor.ne[1] != 1 || tensor.ne[2] != 1 || tensor.ne[3] != 1) {
    throw Error("{} has the shape {}, not {} as the metadata says. {}", file_.Where(tensor),
                fmt::join(tensor.ne, " x "), n, kDamagedOrUnsupported);
  }
  if (Info(tensor.type).block != 1) {
    throw Error("{} is of type {}: norms and biases are supported as F32, F16 and BF16. {}", file_.Where(tensor),
                Info(tensor.type).name, kDamagedOrUnsupported);
  }
  return Add(tensor, false);
}

// The embedding decides how many tokens there are; the tokenizer must not know more, or fewer.
void Builder::ReadVocabulary() {
  if (file_.tensors().empty()) {
    throw Error("{}: holds a vocabulary and no weights: it serves `tokenize` only. Name a whole model.", file_.path());
  }
  const std::string name = "token_embd.weight";
  const Tensor& tensor = Require(name);
  if (tensor.ne[1] > kMaxVocabulary) {
    throw Error("{} has {} rows, over the limit of {}. {}", file_.Where(tensor), tensor.ne[1], kMaxVocabulary,
                kDamagedOrUnsupported);
  }
  if (tensor.ne[0] != config_.n_embd) {
    throw Error(
        "{} has rows of {} for a hidden state of {}: a projection between the two, as OPT-350M has it, is not "
        "supported. {}",
        file_.Where(tensor), tensor.ne[0], config_.n_embd, kOtherModel);
  }
  config_.n_vocab = static_cast<int>(tensor.ne[1]);
  embedding_ = Matrix(name, config_.n_vocab, config_.n_embd);
  const GgufArray* tokens = file_.FindArray("tokenizer.ggml.tokens", GgufArray::Kind::kString);
  if (tokens != nullptr && tokens->size() != static_cast<size_t>(config_.n_vocab)) {
    throw Error("{} has {} tokens where the embedding has {} rows. {}", file_.Where("tokenizer.ggml.tokens"),
                tokens->size(), config_.n_vocab, kDamagedOrUnsupported);
  }
}

// Llama 3 stretches its context by dividing each rope frequency by a factor of its own.
void Builder::ReadRopeFactors() {
  if (config_.HasLearnedPositions()) return;
  const std::string name = "rope_freqs.weight";
  rope_factors_ = OptionalVector(name, config_.rope_dims / 2);
  if (rope_factors_ < 0) return;
  const Tensor& tensor = Require(name);
  std::vector<float> factors(static_cast<size_t>(tensor.ne[0]));
  Dequantize(tensor.type, tensor.data, tensor.ne[0], factors.data());
  for (size_t i = 0; i < factors.size(); ++i) {
    if (std::isfinite(factors[i]) && factors[i] > 0) continue;
    throw Error("{} holds {} at index {}, where frequencies are divided by it. {}", file_.Where(tensor), factors[i], i,
                kDamagedOrUnsupported);
  }
}

void Builder::SetWidths() {
  const auto set = [&](Slot slot, int width) { model_.program.width[static_cast<size_t>(slot)] = width; };
  set(Slot::kHidden, config_.n_embd);
  set(Slot::kNormed, config_.n_embd);
  set(Slot::kBranch, config_.n_embd);
  set(Slot::kQuery, config_.n_head * config_.head_dim);
  set(Slot::kAttention, config_.n_head * config_.head_dim);
  set(Slot::kKey, config_.n_head_kv * config_.head_dim);
  set(Slot::kValue, config_.n_head_kv * config_.head_dim);
  set(Slot::kGate, config_.n_ff);
  set(Slot::kUp, config_.arch.gated_ffn ? config_.n_ff : 0);
  set(Slot::kLogits, config_.n_vocab);
}

Op& Builder::Emit(OpKind kind, int layer, Slot in, Slot out) {
  Op& op = model_.program.ops.emplace_back();
  op.kind = kind;
  op.layer = static_cast<int16_t>(layer);
  op.in = in;
  op.out = out;
  return op;
}

void Builder::Norm(int layer, Slot in, Slot out, bool accumulate, const std::string& name) {
  const bool centers = config_.arch.norm == NormKind::kLayer;
  const WeightId weight = Vector(name + ".weight", config_.n_embd);
  const WeightId bias = centers ? Vector(name + ".bias", config_.n_embd) : WeightId{-1};
  CHECK(!(centers && accumulate));  // no architecture adds a layer norm to the residual
  Op& op = Emit(OpKind::kNorm, layer, in, out);
  op.accumulate = accumulate;
  op.weight = weight;
  op.bias = bias;
}

void Builder::HeadNorm(int layer, Slot inout, const std::string& weight) {
  const WeightId id = Vector(weight, config_.head_dim);
  Emit(OpKind::kHeadNorm, layer, inout, inout).weight = id;
}

void Builder::Rope(int layer, Slot inout) {
  if (config_.HasLearnedPositions()) return;
  const bool local = config_.IsWindowLayer(layer);
  Op& op = Emit(OpKind::kRope, layer, inout, inout);
  op.rope = config_.arch.rope;
  op.rope_base = local ? config_.local_rope_base : config_.rope_base;
  op.rope_scale = local ? 1 : config_.rope_scale;
  op.rope_factors = rope_factors_;
}

Projection Builder::Project(const std::string& name, int64_t n, int64_t k, Slot out) {
  const std::string matrix = name + ".weight", transposed = name + "_t.weight";
  const WeightId weight = file_.FindTensor(transposed) ? Transposed(transposed, n, k) : Matrix(matrix, n, k);
  return {.weight = weight, .bias = OptionalVector(name + ".bias", n), .out = out};
}

void Builder::Residual(int layer, Slot in, int64_t k, const std::string& product, const std::string& post_norm) {
  const bool through_norm = config_.arch.post_norms;
  const Slot out = through_norm ? Slot::kBranch : Slot::kHidden;
  const Projection projection = Project(product, config_.n_embd, k, out);
  Op& op = Emit(OpKind::kLinear, layer, in, out);
  op.accumulate = !through_norm;
  op.large_group = kLargeGroup;
  op.projections[0] = projection;
  op.n_projections = 1;
  op.end = in == Slot::kGate ? config_.n_ff : 0;
  if (through_norm) Norm(layer, Slot::kBranch, Slot::kHidden, true, post_norm);
}

void Builder::Attention(int layer) {
  const int64_t q_width = int64_t{config_.n_head} * config_.head_dim;
  const int64_t kv_width = int64_t{config_.n_head_kv} * config_.head_dim;
  Norm(layer, Slot::kHidden, Slot::kNormed, false, Name(layer, "attn_norm"));
  const std::array<Projection, 3> qkv = {Project(Name(layer, "attn_q"), q_width, config_.n_embd, Slot::kQuery),
                                         Project(Name(layer, "attn_k"), kv_width, config_.n_embd, Slot::kKey),
                                         Project(Name(layer, "attn_v"), kv_width, config_.n_embd, Slot::kValue)};
  Op& op = Emit(OpKind::kLinear, layer, Slot::kNormed, Slot::kQuery);
  op.large_group = kLargeGroupOfQkv;
  op.projections = qkv;
  op.n_projections = 3;
  if (config_.arch.qk_norm) {
    HeadNorm(layer, Slot::kQuery, Name(layer, "attn_q_norm.weight"));
    HeadNorm(layer, Slot::kKey, Name(layer, "attn_k_norm.weight"));
  }
  Rope(layer, Slot::kQuery);
  Rope(layer, Slot::kKey);
  Op& attention = Emit(OpKind::kAttention, layer, Slot::kQuery, Slot::kAttention);
  attention.window = config_.IsWindowLayer(layer) ? config_.window : 0;
  attention.scale = config_.attention_scale;
  Residual(layer, Slot::kAttention, q_width, Name(layer, "attn_output"), Name(layer, "post_attention_norm"));
}

void Builder::FeedForward(int layer) {
  Norm(layer, Slot::kHidden, Slot::kNormed, false, Name(layer, "ffn_norm"));
  const bool gated = config_.arch.gated_ffn;
  std::array<Projection, 3> projections{};
  if (gated) projections[0] = Project(Name(layer, "ffn_gate"), config_.n_ff, config_.n_embd, Slot::kGate);
  projections[gated] = Project(Name(layer, "ffn_up"), config_.n_ff, config_.n_embd, gated ? Slot::kUp : Slot::kGate);
  Op& op = Emit(OpKind::kLinear, layer, Slot::kNormed, Slot::kGate);
  op.large_group = kLargeGroup;
  op.projections = projections;
  op.n_projections = 1 + gated;
  Op& act = Emit(gated ? OpKind::kGatedAct : OpKind::kAct, layer, Slot::kGate, Slot::kGate);
  act.activation = config_.arch.activation;
  act.end = config_.n_ff;
  Residual(layer, Slot::kGate, config_.n_ff, Name(layer, "ffn_down"), Name(layer, "post_ffw_norm"));
}

void Builder::Predictors() {
  const auto name = [this](int layer, std::string_view part) { return Name(layer, part) + ".weight"; };
  if (file_.FindTensor(name(0, "fc1")) == nullptr) return;
  for (int layer = 0; layer < config_.n_layer; ++layer) {
    const FilePredictor predictor = {&Require(name(layer, "fc1")), &Require(name(layer, "fc2"))};
    const int64_t rank = predictor.in->ne[1];
    if (rank > kMaxPredictorRank)
      throw Error("{} has {} rows, over the limit of {}. {}", file_.Where(*predictor.in), rank, kMaxPredictorRank,
                  kDamagedOrUnsupported);
    CheckShape(*predictor.in, rank, config_.n_embd);
    CheckShape(*predictor.out, config_.n_ff, rank);
    used_.insert({predictor.in, predictor.out});
    model_.predictors.push_back(predictor);
  }
}

// A model without output.weight multiplies by its embedding: one tensor, one weight.
void Builder::Head() {
  Norm(-1, Slot::kHidden, Slot::kNormed, false, "output_norm");
  model_.program.ops.back().wanted_rows = true;
  const bool tied = file_.FindTensor("output.weight") == nullptr;
  const WeightId weight = tied ? embedding_ : Matrix("output.weight", config_.n_vocab, config_.n_embd);
  const WeightId bias = OptionalVector("output.bias", config_.n_vocab);
  Op& op = Emit(OpKind::kLinear, -1, Slot::kNormed, Slot::kLogits);
  op.wanted_rows = true;
  op.projections[0] = {.weight = weight, .bias = bias, .out = Slot::kLogits};
  op.n_projections = 1;
}

void Builder::Embed() {
  Op& op = Emit(OpKind::kEmbed, -1, Slot::kCount, Slot::kHidden);
  op.weight = embedding_;
  op.scale = config_.embedding_scale;
  if (!config_.HasLearnedPositions()) return;
  const std::string name = "position_embd.weight";
  const bool trimmed = Require(name).ne[1] == config_.n_ctx_train;
  op.position_offset = trimmed ? 0 : config_.arch.position_offset;
  op.positions = Matrix(name, int64_t{config_.n_ctx_train} + op.position_offset, config_.n_embd);
}

void Builder::Build() {
  ReadVocabulary();
  ReadRopeFactors();
  SetWidths();
  Embed();
  for (int layer = 0; layer < config_.n_layer; ++layer) {
    Attention(layer);
    FeedForward(layer);
  }
  Head();
  Predictors();
}

// A tensor that nothing reads means that the model is more than its architecture row says.
void Builder::RefuseUnusedTensors() const {
  for (const Tensor& tensor : file_.tensors()) {
    if (used_.contains(&tensor)) continue;
    throw Error("{} is no part of architecture {}: the model would not run as it was trained. {}", file_.Where(tensor),
                Quoted(config_.arch.name), kOtherModel);
  }
}

}  // namespace

std::vector<double> RopeFrequencies(const ModelConfig& config, const Op& op, const float* factors) {
  std::vector<double> frequencies;
  for (int i = 0; i < config.rope_dims / 2; ++i)
    frequencies.push_back(std::pow(double{op.rope_base}, -2.0 * i / config.rope_dims) * op.rope_scale /
                          (factors ? factors[i] : 1));
  return frequencies;
}

bool SameFrequencies(const Op& a, const Op& b) {
  return a.rope_base == b.rope_base && a.rope_scale == b.rope_scale && a.rope_factors == b.rope_factors;
}

DType Weight::type() const {
  const DType own = transposed && Info(tensor->type).block > 1 ? DType::kQ8_0 : tensor->type;
  return columns ? columns->TypeOf(own) : own;
}

int Weight::block() const { return transposed ? 1 : static_cast<int>(Info(tensor->type).block); }

int64_t Weight::row_bytes() const {
  const DTypeInfo& info = Info(tensor->type);
  return matrix ? tensor->ne[0] / info.block * info.block_bytes : info.block_bytes;
}

const uint8_t* Weight::data() const {
  const DTypeInfo& info = Info(tensor->type);
  return tensor->data + first_row * row_bytes() + first_k / info.block * info.block_bytes;
}

Model Model::FromGguf(const GgufFile& file) {
  const Arch& arch = ReadArch(file);
  Model model;
  model.config = ReadConfig(file, arch, /*arch_is_from_file=*/true);
  Builder builder(file, model);
  builder.Build();
  builder.RefuseUnusedTensors();
  return model;
}

Model Model::FromGguf(const GgufFile& file, const Arch& arch) {
  Model model;
  model.config = ReadConfig(file, arch, /*arch_is_from_file=*/false);
  Builder(file, model).Build();
  return model;
}

}  // namespace thermocline
