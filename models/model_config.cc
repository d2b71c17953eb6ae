#include "models/model_config.h"

#include <cmath>
#include <optional>

#include "models/advice.h"
#include "models/error.h"
#include "models/limits.h"
#include "models/quoted.h"

namespace thermocline {
namespace {

// Metadata under the prefix of the file's architecture: Key("block_count") is "llama.block_count".
class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file), prefix_(file.GetString("general.architecture")) {}

  std::string Key(std::string_view name) const { return fmt::format("{}.{}", prefix_, name); }
  bool Has(std::string_view name) const { return file_.Find(Key(name)) != nullptr; }
  int Int(std::string_view name, int min, int max) const { return static_cast<int>(file_.GetInt(Key(name), min, max)); }
  int Int(std::string_view name, int min, int max, int fallback) const {
    return static_cast<int>(file_.GetInt(Key(name), min, max, fallback));
  }
  // Positive and at most `max`; as a float no more than rounded.
  float Float(std::string_view name, double max) const { return Checked(name, max, file_.GetFloat(Key(name))); }
  float Float(std::string_view name, double max, double fallback) const {
    return Has(name) ? Float(name, max) : static_cast<float>(fallback);
  }
  template <typename... Args>
  [[noreturn]] void Fail(std::string_view name, fmt::format_string<Args...> format, Args&&... args) const {
    throw Error("{} {}", file_.Where(Key(name)), fmt::format(format, std::forward<Args>(args)...));
  }
  // The feature that `name` turns on is not in the table of architectures.
  void RefuseUnlessZero(std::string_view name, std::string_view feature) const {
    if (!Has(name)) return;
    const GgufValue& value = *file_.Find(Key(name));
    const auto* number = std::get_if<double>(&value);
    const double setting = number != nullptr ? *number : static_cast<double>(file_.GetInt(Key(name), 0, INT64_MAX));
    if (setting != 0) Fail(name, "is {}: {} is not supported. {}", setting, feature, kOtherModel);
  }
  const GgufFile& file() const { return file_; }

 private:
  float Checked(std::string_view name, double max, double value) const {
    const auto rounded = static_cast<float>(value);
    if (!(rounded > 0) || value > max) {
      Fail(name, "is {}, outside 0 (excluded) to {}. {}", value, max, kDamagedOrUnsupported);
    }
    return rounded;
  }

  const GgufFile& file_;
  std::string prefix_;
};

void ReadHeads(const Reader& reader, ModelConfig& config) {
  config.n_head = reader.Int("attention.head_count", 1, kMaxHeads);
  config.n_head_kv = reader.Int("attention.head_count_kv", 1, config.n_head, config.n_head);
  if (config.n_head % config.n_head_kv != 0) {
    reader.Fail("attention.head_count_kv", "is {}, which does not divide the {} heads. {}", config.n_head_kv,
                config.n_head, kDownloadAgain);
  }
  if (!reader.Has("attention.key_length") && config.n_embd % config.n_head != 0) {
    reader.Fail("attention.head_count", "is {}, which does not divide the embedding length {}. {}", config.n_head,
                config.n_embd, kDownloadAgain);
  }
  config.head_dim = reader.Int("attention.key_length", 2, kMaxHeadDim, config.n_embd / config.n_head);
  if (config.head_dim < 2 || config.head_dim > kMaxHeadDim) {
    reader.Fail("attention.head_count", "is {}, which makes heads of {} numbers, outside 2 to {}. {}", config.n_head,
                config.head_dim, kMaxHeadDim, kOtherModel);
  }
  const int value_dim = reader.Int("attention.value_length", 2, kMaxHeadDim, config.head_dim);
  if (value_dim != config.head_dim) {
    reader.Fail("attention.value_length", "is {} where keys have {}: different lengths are not supported. {}",
                value_dim, config.head_dim, kOtherModel);
  }
}

// 1 / factor where positions are divided by a constant factor; every other way of stretching rope is refused.
float ReadRopeScale(const Reader& reader) {
  const std::string type(reader.file().GetString(reader.Key("rope.scaling.type"), "linear"));
  if (type == "none") return 1;
  if (type != "linear") {
    reader.Fail("rope.scaling.type", "is {}: only 'none' and 'linear' are supported. {}", Quoted(type), kOtherModel);
  }
  // Files from before 2023-11 call the factor scale_linear.
  const std::string_view name = reader.Has("rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
  return 1 / reader.Float(name, kMaxRopeFactor, 1);
}

void ReadRope(const Reader& reader, ModelConfig& config) {
  if (config.HasLearnedPositions()) return;
  config.rope_dims = reader.Int("rope.dimension_count", 2, config.head_dim, config.head_dim / 2 * 2);
  if (config.rope_dims % 2 != 0) {
    reader.Fail("rope.dimension_count", "is {}, not even. {}", config.rope_dims, kDownloadAgain);
  }
  config.rope_base = reader.Float("rope.freq_base", kMaxRopeBase, 10000);
  config.rope_scale = ReadRopeScale(reader);
  config.local_rope_base = config.arch.local_rope_base > 0
                               ? reader.Float("rope.freq_base_swa", kMaxRopeBase, config.arch.local_rope_base)
                               : config.rope_base;
}

// The period that the file gives, as a number or as a list of one flag per layer; nullopt when it gives none.
std::optional<int> ReadWindowPeriod(const Reader& reader, int n_layer) {
  constexpr std::string_view kName = "attention.sliding_window_pattern";
  if (!reader.Has(kName)) return std::nullopt;
  const int none_global = n_layer + 1;
  if (!std::holds_alternative<GgufArray>(*reader.file().Find(reader.Key(kName)))) {
    const int period = reader.Int(kName, 0, kMaxLayers);
    return period == 0 ? none_global : period;
  }
  const std::vector<uint64_t>& is_window =
      reader.file().FindArray(reader.Key(kName), GgufArray::Kind::kBool)->unsigneds;
  if (is_window.size() != static_cast<size_t>(n_layer)) {
    reader.Fail(kName, "has {} flags for {} layers. {}", is_window.size(), n_layer, kDownloadAgain);
  }
  int period = 1;
  while (period <= n_layer && is_window[static_cast<size_t>(period - 1)] != 0) ++period;
  for (int layer = 0; layer < n_layer; ++layer) {
    const bool expected = (layer + 1) % period != 0;
    if ((is_window[static_cast<size_t>(layer)] != 0) != expected) {
      reader.Fail(kName, "breaks its period of {} at layer {}, which is not supported. {}", period, layer, kOtherModel);
    }
  }
  return period;
}

void ReadWindow(const Reader& reader, bool arch_is_from_file, ModelConfig& config) {
  constexpr std::string_view kName = "attention.sliding_window";
  config.window = reader.Int(kName, 0, kMaxTrainContext, 0);
  if (arch_is_from_file) {
    config.arch.global_period = ReadWindowPeriod(reader, config.n_layer).value_or(config.arch.global_period);
    if (config.arch.global_period == 0 && config.window != 0 && config.window < config.n_ctx_train) {
      reader.Fail(kName, "is {}, but architecture {} has no window layers here. {}", config.window,
                  Quoted(config.arch.name), kOtherModel);
    }
  }
  if (config.arch.global_period == 0) config.window = 0;
}

// gemma3 scales q.k by the length of a head, except the model of 62 layers (27B), which takes n_embd / n_head:
// query_pre_attn_scalar in its config.json, which GGUF files do not carry.
float DefaultAttentionScale(const ModelConfig& config) {
  const bool is_gemma3_27b = std::string_view(config.arch.name) == "gemma3" && config.n_layer == 62;
  return 1 / std::sqrt(static_cast<float>(is_gemma3_27b ? config.n_embd / config.n_head : config.head_dim));
}

void RefuseUnsupported(const Reader& reader) {
  reader.RefuseUnlessZero("expert_count", "a mixture of experts");
  reader.RefuseUnlessZero("final_logit_softcapping", "a soft cap on logits");
  reader.RefuseUnlessZero("attn_logit_softcapping", "a soft cap on attention");
  if (!reader.file().GetBool(reader.Key("attention.causal"), true)) {
    reader.Fail("attention.causal", "is false: the model sees the future and writes no text. {}", kOtherModel);
  }
  const int64_t n_files = reader.file().GetInt("split.count", 0, UINT16_MAX, 0);
  if (n_files > 1) {
    throw Error("{} is {}: this is one part of a split model. Merge the parts with `llama-gguf-split --merge`.",
                reader.file().Where("split.count"), n_files);
  }
}

// GGUF has no key for the activation: it comes with the architecture. ReLU-fied models (arXiv:2310.04564) are llama in
// everything else, so they name it in a key of our own. PowerInfer's files of llama models are all ReLU-fied.
Activation ReadActivation(const GgufFile& file, Activation fallback) {
  constexpr std::string_view kKey = "thermocline.activation";
  if (file.Find(kKey) == nullptr) return file.powerinfer() ? Activation::kRelu : fallback;
  const std::string_view name = file.GetString(kKey);
  if (const auto activation = FindActivation(name)) return *activation;
  throw Error("{} is {}, which is not supported: it is one of {}. {}", file.Where(kKey), Quoted(name),
              ActivationNames(), kOtherModel);
}

}  // namespace

bool ModelConfig::IsWindowLayer(int layer) const {
  return window > 0 && arch.global_period > 0 && (layer + 1) % arch.global_period != 0;
}

const Arch& ReadArch(const GgufFile& file) {
  const std::string_view name = file.GetString("general.architecture");
  if (const Arch* arch = FindArch(name)) return *arch;
  std::string known;
  for (const Arch& arch : Archs()) known += known.empty() ? arch.name : fmt::format(", {}", arch.name);
  throw Error("{} is {}, which is not supported. Get a model of one of: {}.", file.Where("general.architecture"),
              Quoted(name), known);
}

ModelConfig ReadConfig(const GgufFile& file, const Arch& arch, bool arch_is_from_file) {
  const Reader reader(file);
  RefuseUnsupported(reader);
  ModelConfig config = {};
  config.arch = arch;
  if (arch_is_from_file) config.arch.activation = ReadActivation(file, arch.activation);
  config.n_layer = reader.Int("block_count", 1, kMaxLayers);
  config.n_embd = reader.Int("embedding_length", 2, kMaxEmbedding);
  config.n_ff = reader.Int("feed_forward_length", 1, kMaxFeedForward);
  // PowerInfer counts the rows in front of the first position as well.
  const int unused = file.powerinfer() ? arch.position_offset : 0;
  config.n_ctx_train = reader.Int("context_length", 1 + unused, kMaxTrainContext) - unused;
  config.norm_eps = reader.Float(
      arch.norm == NormKind::kLayer ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", 1);
  config.embedding_scale = arch.scale_embedding ? std::sqrt(static_cast<float>(config.n_embd)) : 1;
  ReadHeads(reader, config);
  ReadRope(reader, config);
  ReadWindow(reader, arch_is_from_file, config);
  config.attention_scale = reader.Float("attention.scale", 1e6, DefaultAttentionScale(config));
  return config;
}

}  // namespace thermocline
