#include "runtime/auto_quantize.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "cpu/isa.h"
#include "models/check.h"
#include "models/error.h"
#include "models/gguf_writer.h"
#include "models/quantize.h"
#include "runtime/layerwise.h"
#include "runtime/progress.h"
#include "runtime/quantizer.h"

namespace thermocline {
namespace {

// Rows of a tensor that stand for all when its error is measured per type: the ratios of types vary by 2 % among 48.
constexpr int64_t kSampleRows = 48;
// Chunks of the text on which the sensitivity of a role is measured.
constexpr int64_t kSensitivityChunks = 2;
constexpr int kMaxMixtures = 7;
// Two files nearer than this are the same size.
constexpr double kSizeTolerance = 0.004;

// "blk.7.ffn_down.weight": "ffn_down.weight"; what is no layer's has a role of its own.
std::string RoleOf(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  return std::string(name.starts_with(kPrefix) ? name.substr(name.find('.', kPrefix.size()) + 1) : name);
}

}  // namespace

AutoQuantizer::AutoQuantizer(const GgufFile& file, const Model& model, const Calibration& calibration,
                             std::span<const TokenId> text, const Judge& judge, const Tokenizer& tokenizer,
                             std::span<const TokenId> sensitivity_text, AutoOptions options)
    : file_(file),
      model_(model),
      calibration_(calibration),
      text_(text),
      judge_(judge),
      tokenizer_(tokenizer),
      sensitivity_text_(sensitivity_text),
      options_(std::move(options)),
      team_(options_.n_threads) {
  ListCandidates();
  if (candidates_.empty()) throw Error("{}: nothing to do: no matrix has more bits than Q4_0 already", file.path());
}

const Feedback* AutoQuantizer::FeedbackOf(size_t tensor) const {
  for (const Candidate& candidate : candidates_)
    if (candidate.tensor == tensor) return calibration_.Find(candidate.id);
  return nullptr;
}

void AutoQuantizer::ListCandidates() {
  for (size_t id = 0; id < model_.weights.size(); ++id) {
    const Weight& weight = model_.weights[id];
    if (!weight.matrix) continue;
    Candidate candidate = {.tensor = static_cast<size_t>(weight.tensor - file_.tensors().data()),
                           .id = static_cast<WeightId>(id),
                           .n = weight.n,
                           .k = weight.k,
                           .role = RoleOf(weight.tensor->name),
                           .choices{}};
    for (const DType type : QuantizeTypes()) {
      if (weight.k % Info(type).block != 0 || BitsPerWeight(weight.tensor->type) <= BitsPerWeight(type)) continue;
      candidate.choices.push_back({type, TensorBytes(*weight.tensor, type), 0, 0});
    }
    if (!candidate.choices.empty()) candidates_.push_back(std::move(candidate));
  }
}

std::vector<float> AutoQuantizer::Sample(const Candidate& candidate) const {
  const Tensor& tensor = file_.tensors()[candidate.tensor];
  const int64_t rows = std::min(kSampleRows, candidate.n);
  std::vector<float> sample;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * candidate.n / rows;
    const std::vector<float> values = ReadRows(file_, tensor, row, row + 1);
    sample.insert(sample.end(), values.begin(), values.end());
  }
  return sample;
}

// Of each choice.
void AutoQuantizer::MeasureErrors(Candidate& candidate, std::span<const float> sample) const {
  const Feedback* feedback = calibration_.Find(candidate.id);
  const VectorOps& ops = VectorOpsFor(ChooseIsa());
  const auto n = static_cast<int64_t>(sample.size());
  for (Choice& choice : candidate.choices) {
    std::vector<uint8_t> bytes(sample.size() / Info(choice.type).block * Info(choice.type).block_bytes);
    double error = 0;
    if (feedback != nullptr && !feedback->u.empty()) {
      error = QuantizeWithFeedback(choice.type, *feedback, sample, bytes.data(), ops);
    } else {
      std::vector<float> values(sample.size());
      Quantize(choice.type, sample.data(), nullptr, n, bytes.data());
      Dequantize(choice.type, bytes.data(), n, values.data());
      for (size_t i = 0; i < values.size(); ++i) {
        const double d = double{sample[i]} - values[i];
        error += d * d * (feedback == nullptr ? 1 : feedback->weights[i % static_cast<size_t>(candidate.k)]);
      }
    }
    choice.error = error * static_cast<double>(candidate.n * candidate.k) / static_cast<double>(n);
  }
}

AutoQuantizer::Bytes AutoQuantizer::EncodePlain(std::span<const DType> types) {
  Bytes bytes(types.size());
  for (size_t i = 0; i < types.size(); ++i)
    if (types[i] != file_.tensors()[i].type)
      bytes[i] = EncodeTensor(file_, file_.tensors()[i], types[i], nullptr, team_);
  return bytes;
}

AutoQuantizer::Bytes AutoQuantizer::EncodeApart(std::span<const DType> types) {
  Bytes bytes(types.size());
  Progress progress("quantizing", "");
  for (size_t i = 0; i < types.size(); ++i) {
    progress.Update(static_cast<int64_t>(i), static_cast<int64_t>(types.size()));
    if (types[i] == file_.tensors()[i].type) continue;
    std::vector<uint8_t>& kept = apart_[{i, types[i]}];
    if (kept.empty()) kept = EncodeTensor(file_, file_.tensors()[i], types[i], FeedbackOf(i), team_);
    bytes[i] = kept;
  }
  return bytes;
}

AutoQuantizer::Bytes AutoQuantizer::EncodeInOrder(std::span<const DType> types) {
  return EncodeLayerwise(file_, model_, types, calibration_.Find(model_.program.ops[0].weight), text_, options_.n_ctx,
                         options_.n_threads);
}

std::vector<DType> AutoQuantizer::Uniform(DType type) const {
  std::vector<DType> types;
  for (const Tensor& tensor : file_.tensors()) types.push_back(tensor.type);
  for (const Candidate& candidate : candidates_) {
    const DType fitting = FittingType(type, candidate.k);
    for (const Choice& choice : candidate.choices)
      if (choice.type == fitting) types[candidate.tensor] = fitting;
  }
  return types;
}

// Of types with as few bytes, the one that errs least.
std::vector<DType> AutoQuantizer::Narrowest() const {
  std::vector<DType> types;
  for (const Tensor& tensor : file_.tensors()) types.push_back(tensor.type);
  for (const Candidate& candidate : candidates_) {
    const auto narrowest = std::min_element(
        candidate.choices.begin(), candidate.choices.end(),
        [](const Choice& a, const Choice& b) { return std::pair(a.bytes, a.error) < std::pair(b.bytes, b.error); });
    types[candidate.tensor] = narrowest->type;
  }
  return types;
}

// Each tensor's best type where a byte costs this much KL.
std::vector<DType> AutoQuantizer::Mixture(double bytes_price) const {
  std::vector<DType> types;
  for (const Tensor& tensor : file_.tensors()) types.push_back(tensor.type);
  for (const Candidate& candidate : candidates_) {
    double least = INFINITY;
    for (const Choice& choice : candidate.choices) {
      const double cost = choice.kl + bytes_price * static_cast<double>(choice.bytes);
      if (cost >= least) continue;
      least = cost;
      types[candidate.tensor] = choice.type;
    }
  }
  return types;
}

double AutoQuantizer::PredictedKl(std::span<const DType> types) const {
  double kl = 0;
  for (const Candidate& candidate : candidates_)
    for (const Choice& choice : candidate.choices)
      if (choice.type == types[candidate.tensor]) kl += choice.kl;
  return kl;
}

// No price leads to every size, as a large tensor becomes wider at once: what the next price leaves of `kl` goes to
// others, for the most bytes at a time.
std::vector<DType> AutoQuantizer::MixtureOfKl(double kl) const {
  double low = 1e-20, high = 1;  // of the price, KL per byte
  for (int i = 0; i < 60; ++i) {
    const double middle = std::sqrt(low * high);
    (PredictedKl(Mixture(middle)) > kl ? high : low) = middle;
  }
  std::vector<DType> types = Mixture(low);
  for (double left = kl - PredictedKl(types);;) {
    const Candidate* narrowed = nullptr;
    const Choice* best = nullptr;
    double most = 0, price = 0;  // bytes saved per KL; that KL
    for (const Candidate& candidate : candidates_) {
      const Choice& now = *std::ranges::find(candidate.choices, types[candidate.tensor], &Choice::type);
      for (const Choice& choice : candidate.choices) {
        const double cost = choice.kl - now.kl;
        if (choice.bytes >= now.bytes || cost > left) continue;
        const double saved = static_cast<double>(now.bytes - choice.bytes) / std::max(cost, 1e-30);
        if (saved <= most) continue;
        most = saved;
        price = cost;
        narrowed = &candidate;
        best = &choice;
      }
    }
    if (best == nullptr) return types;
    types[narrowed->tensor] = best->type;
    left -= price;
  }
}

// "Q4_0 70 %, Q8_0 30 %": of the weights.
std::string AutoQuantizer::Shares(std::span<const DType> types) const {
  std::map<DType, int64_t> weights;
  int64_t all = 0;
  for (const Candidate& candidate : candidates_) {
    weights[types[candidate.tensor]] += candidate.n * candidate.k;
    all += candidate.n * candidate.k;
  }
  std::string shares;
  for (const auto& [type, n] : weights)
    shares += fmt::format("{}{} {:.0f} %", shares.empty() ? "" : ", ", Info(type).name, 100.0 * n / all);
  return shares;
}

std::unique_ptr<Engine> AutoQuantizer::MakeEngine(std::span<const DType> types, const Bytes& bytes) const {
  std::vector<Tensor> tensors = file_.tensors();
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] == tensors[i].type) continue;
    tensors[i].type = types[i];
    tensors[i].data = bytes[i].data();
    tensors[i].bytes = bytes[i].size();
  }
  Model model = model_;
  for (Weight& weight : model.weights)
    weight.tensor = &tensors[static_cast<size_t>(weight.tensor - file_.tensors().data())];
  EngineOptions options;
  options.n_ctx = options_.n_ctx;
  options.n_threads = options_.n_threads;
  return std::make_unique<Engine>(file_, model, options);
}

Trial AutoQuantizer::Try(std::string recipe, std::span<const DType> types, const Bytes& bytes) {
  const Trial trial{std::move(recipe), PlannedBytes(file_, types), judge_.Measure(*MakeEngine(types, bytes))};
  if (options_.on_trial) options_.on_trial(trial);
  return trial;
}

void AutoQuantizer::MeasureErrors() {
  std::vector<std::vector<float>> samples;
  for (const Candidate& candidate : candidates_) samples.push_back(Sample(candidate));
  const auto n = static_cast<int64_t>(samples.size());
  team_.Run([&](Team::Member& member) {
    member.For(n, 1, [&](int64_t i, int64_t) { MeasureErrors(candidates_[i], samples[i]); });
  });
}

// Of each role, the KL from all in 8 bits when its tensors are narrow, to which each of them is taken to add as much:
// encoded in order they do, whatever they do apart. In SmolLM2, its hidden state rotated, a third of the layers (but
// for attention output) in 4.5 bits and the others in 5.5 adds 0.0054, 0.0049 and 0.0054 in order, from the first third
// to the last, where the sums of its roles apart are 0.0113, 0.0174 and 0.0097. Rows are as generated, in 16 bits: in
// 8, activations add a KL of their own.
void AutoQuantizer::MeasureSensitivity(std::span<const DType> narrow) {
  const std::vector<DType> wide = Uniform(DType::kQ8_0);
  const auto length =
      std::min<size_t>(sensitivity_text_.size(), static_cast<size_t>(kSensitivityChunks * options_.n_ctx));
  const Judge judge(*MakeEngine(wide, EncodeApart(wide)), tokenizer_, sensitivity_text_.first(length), options_.n_ctx,
                    RowKind::kGenerated);
  std::map<std::string, std::vector<Candidate*>> roles;
  for (Candidate& candidate : candidates_) roles[candidate.role].push_back(&candidate);
  Progress progress("measuring sensitivity", "");
  int64_t done = 0;
  for (const auto& [role, members] : roles) {
    std::vector<DType> types = wide;
    for (const Candidate* member : members) types[member->tensor] = narrow[member->tensor];
    const double kl = std::max(judge.Measure(*MakeEngine(types, EncodeApart(types))).kl, 1e-7);
    for (Candidate* member : members) {
      const double error = std::ranges::find(member->choices, narrow[member->tensor], &Choice::type)->error;
      for (Choice& choice : member->choices)
        choice.kl = error > 0 ? kl / static_cast<double>(members.size()) * choice.error / error : 0;
    }
    progress.Update(++done, static_cast<int64_t>(roles.size()));
  }
}

std::vector<DType> AutoQuantizer::Search() {
  const std::vector<DType> plain = Uniform(DType::kQ4_0);
  Try("Q4_0, plain rounding", plain, EncodePlain(plain));
  std::vector<DType> best = Uniform(DType::kQ8_0);
  best_ = EncodeApart(best);
  const Trial widest = Try("Q8_0, error feedback", best, best_);
  if (widest.judgement.loss > options_.max_loss)
    throw Error("even 8 bits lose {:.3f} % of perplexity on this text, more than {:.3f} %: allow a larger --max-loss",
                100 * widest.judgement.loss, 100 * options_.max_loss);
  MeasureErrors();
  const std::vector<DType> narrow = Narrowest();
  Bytes bytes = EncodeInOrder(narrow);
  const Trial narrowest = Try(Shares(narrow), narrow, bytes);
  if (narrowest.judgement.loss <= options_.max_loss) {
    best_ = std::move(bytes);
    return narrow;
  }
  MeasureSensitivity(narrow);

  // Loss grows with predicted KL; the bracket closes by linear interpolation, a little to the safe side.
  struct End {
    double kl, loss;
    double bytes;
  };
  End good{PredictedKl(best), widest.judgement.loss, static_cast<double>(widest.file_bytes)};
  End bad{PredictedKl(narrow), narrowest.judgement.loss, static_cast<double>(narrowest.file_bytes)};
  for (int i = 0; i < kMaxMixtures && good.bytes - bad.bytes > kSizeTolerance * good.bytes; ++i) {
    const double part = std::clamp((options_.max_loss - good.loss) / (bad.loss - good.loss), 0.08, 0.92);
    const std::vector<DType> types = MixtureOfKl(good.kl + 0.97 * part * (bad.kl - good.kl));
    bytes = EncodeInOrder(types);
    const Trial trial = Try(Shares(types), types, bytes);
    const End end{PredictedKl(types), trial.judgement.loss, static_cast<double>(trial.file_bytes)};
    const bool within = trial.judgement.loss <= options_.max_loss;
    if (within ? end.bytes >= good.bytes : end.bytes <= bad.bytes) break;  // the types have no file in between
    if (within) {
      best = types;
      best_ = std::move(bytes);
    }
    (within ? good : bad) = end;
  }
  return best;
}

}  // namespace thermocline
