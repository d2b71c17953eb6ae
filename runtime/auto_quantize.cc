#include "runtime/auto_quantize.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "models/error.h"
#include "models/gguf_writer.h"
#include "models/quantize.h"
#include "runtime/quantizer.h"

namespace thermocline {
namespace {

// Rows of a tensor that stand for all when its error is measured per type: the ratios of types vary by 2 % among 48.
constexpr int64_t kSampleRows = 48;
constexpr int kMaxMixtures = 7;
// Two files nearer than this are the same size.
constexpr double kSizeTolerance = 0.004;

// Of choices by rising size, those that lower the error the most per byte: the lower convex hull, with the widest.
template <typename Choice>
std::vector<Choice> Hull(const std::vector<Choice>& choices) {
  const auto gain = [](const Choice& a, const Choice& b) {
    return (a.error - b.error) / static_cast<double>(b.bytes - a.bytes);
  };
  std::vector<Choice> hull;
  for (const Choice& choice : choices) {
    const bool is_widest = choice.bytes == choices.back().bytes;
    if (!hull.empty() && (choice.bytes == hull.back().bytes || (choice.error >= hull.back().error && !is_widest)))
      continue;
    while (hull.size() > 1 && gain(hull.back(), choice) >= gain(hull[hull.size() - 2], hull.back())) hull.pop_back();
    hull.push_back(choice);
  }
  return hull;
}

}  // namespace

AutoQuantizer::AutoQuantizer(const GgufFile& file, const Model& model, const Feedback* embedding,
                             std::span<const TokenId> text, const Judge& judge, AutoOptions options)
    : file_(file),
      model_(model),
      embedding_(embedding),
      text_(text),
      judge_(judge),
      options_(std::move(options)),
      team_(options_.n_threads) {
  ListCandidates();
  if (candidates_.empty()) throw Error("{}: nothing to do: no matrix has more bits than Q4_0 already", file.path());
  MeasureErrors();
  ChooseLevels();
}

void AutoQuantizer::ListCandidates() {
  for (const Weight& weight : model_.weights) {
    // Learned positions stay, as with --type.
    if (!weight.matrix || &weight - model_.weights.data() == model_.program.ops[0].positions) continue;
    const Tensor& tensor = *weight.tensor;
    Candidate candidate = {
        .tensor = static_cast<size_t>(&tensor - file_.tensors().data()), .n = weight.n, .k = weight.k, .levels{}};
    for (const DType type : QuantizeTypes()) {
      if (weight.k % Info(type).block != 0 || BitsPerWeight(tensor.type) <= BitsPerWeight(type)) continue;
      candidate.levels.push_back({type, TensorBytes(tensor, type), 0});
    }
    if (candidate.levels.empty()) continue;
    if (BitsPerWeight(tensor.type) <= BitsPerWeight(DType::kQ8_0))
      candidate.levels.push_back({tensor.type, tensor.bytes, 0});
    candidates_.push_back(std::move(candidate));
  }
  std::ranges::reverse(candidates_);
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

void AutoQuantizer::MeasureErrors() {
  std::vector<std::vector<float>> samples;
  for (const Candidate& candidate : candidates_) samples.push_back(Sample(candidate));
  team_.Run([&](Team::Member& member) {
    member.For(std::ssize(candidates_), 1, [&](int64_t i, int64_t) {
      Candidate& candidate = candidates_[i];
      const std::vector<float>& sample = samples[i];
      const auto n = static_cast<int64_t>(sample.size());
      double squares = 0;
      for (const float value : sample) squares += double{value} * value;
      std::vector<float> values(sample.size());
      for (Choice& choice : candidate.levels) {
        if (choice.type == file_.tensors()[candidate.tensor].type) continue;
        std::vector<uint8_t> bytes(sample.size() / Info(choice.type).block * Info(choice.type).block_bytes);
        Quantize(choice.type, sample.data(), nullptr, n, bytes.data());
        Dequantize(choice.type, bytes.data(), n, values.data());
        double error = 0;
        for (size_t j = 0; j < values.size(); ++j) error += (double{sample[j]} - values[j]) * (sample[j] - values[j]);
        choice.error = squares > 0 ? error / squares * static_cast<double>(candidate.n * candidate.k) : 0;
      }
    });
  });
}

// The same for all that have the same choices, so that a level is one type.
void AutoQuantizer::ChooseLevels() {
  std::map<std::vector<DType>, std::vector<Candidate*>> alike;
  for (Candidate& candidate : candidates_) {
    std::vector<DType> types;
    for (const Choice& choice : candidate.levels) types.push_back(choice.type);
    alike[types].push_back(&candidate);
  }
  for (const auto& [types, members] : alike) {
    std::vector<Choice> sums;
    for (size_t i = 0; i < types.size(); ++i) {
      sums.push_back({types[i], 0, 0});
      for (const Candidate* member : members) {
        sums[i].bytes += member->levels[i].bytes;
        sums[i].error += member->levels[i].error;
      }
    }
    std::ranges::sort(sums, {}, [](const Choice& choice) { return std::pair(choice.bytes, choice.error); });
    const std::vector<Choice> hull = Hull(sums);
    for (Candidate* member : members) {
      std::vector<Choice> levels;
      for (const Choice& level : hull) levels.push_back(*std::ranges::find(member->levels, level.type, &Choice::type));
      member->levels = std::move(levels);
    }
  }
}

// What it costs is measured, as nothing before it is rounded and what reads it has one row of it at a time: that KL is
// to its error as what the others add in order, which is what `narrow` has more, is to theirs. Where it costs less than
// they do, it becomes narrow before them.
void AutoQuantizer::WeighEmbedding(std::span<const DType> narrow, double narrow_kl) {
  const Tensor* tensor = model_.weights[model_.program.ops[0].weight].tensor;
  const auto index = static_cast<size_t>(tensor - file_.tensors().data());
  const auto embedding = std::ranges::find(candidates_, index, &Candidate::tensor);
  if (embedding == candidates_.end()) return;
  Encoding alone{OwnTypes(), std::vector<std::vector<uint8_t>>(narrow.size())};
  alone.types[index] = narrow[index];
  alone.bytes[index] = EncodeTensor(file_, *tensor, narrow[index], embedding_, team_);
  const double kl = std::max(judge_.Measure(*MakeEngine(alone)).kl, 0.0), error = embedding->levels.front().error;
  double others = -error;
  for (const Candidate& candidate : candidates_) others += candidate.levels.front().error;
  if (!(error > 0) || !(others > 0) || !(narrow_kl > 0)) return;
  const double weight = kl / error * others / std::max(narrow_kl - kl, 0.1 * narrow_kl);
  for (Choice& choice : embedding->levels) choice.error *= weight;
  if (weight < 1) std::rotate(candidates_.begin(), embedding, embedding + 1);
}

// All from their widest level down, a level at a time.
void AutoQuantizer::PlanNarrowings() {
  size_t n_levels = 0;
  for (const Candidate& candidate : candidates_) n_levels = std::max(n_levels, candidate.levels.size());
  double error = 0;
  for (size_t level = n_levels; level-- > 0;)
    for (const Candidate& candidate : candidates_) {
      if (level + 1 >= candidate.levels.size()) continue;
      error += candidate.levels[level].error - candidate.levels[level + 1].error;
      narrowings_.push_back({candidate.tensor, candidate.levels[level].type, error});
    }
}

std::vector<DType> AutoQuantizer::OwnTypes() const {
  std::vector<DType> types;
  for (const Tensor& tensor : file_.tensors()) types.push_back(tensor.type);
  return types;
}

std::vector<DType> AutoQuantizer::Uniform(DType type) const {
  std::vector<DType> types = OwnTypes();
  for (const Candidate& candidate : candidates_) {
    const DType fitting = FittingType(type, candidate.k);
    if (BitsPerWeight(fitting) < BitsPerWeight(types[candidate.tensor])) types[candidate.tensor] = fitting;
  }
  return types;
}

std::vector<DType> AutoQuantizer::TypesAfter(size_t n_narrowed) const {
  std::vector<DType> types = OwnTypes();
  for (const Candidate& candidate : candidates_) types[candidate.tensor] = candidate.levels.back().type;
  for (const Narrowing& narrowing : std::span(narrowings_).first(n_narrowed)) types[narrowing.tensor] = narrowing.type;
  return types;
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

Encoding AutoQuantizer::EncodePlain(std::vector<DType> types) {
  Encoding encoding{std::move(types), std::vector<std::vector<uint8_t>>(file_.tensors().size())};
  for (size_t i = 0; i < encoding.types.size(); ++i)
    if (encoding.types[i] != file_.tensors()[i].type)
      encoding.bytes[i] = EncodeTensor(file_, file_.tensors()[i], encoding.types[i], nullptr, team_);
  return encoding;
}

Encoding AutoQuantizer::EncodeInOrder(std::vector<DType> types, const Encoding* known) {
  return EncodeLayerwise(file_, model_, std::move(types), embedding_, text_, options_.n_ctx, team_, known);
}

std::unique_ptr<Engine> AutoQuantizer::MakeEngine(const Encoding& encoding) {
  std::vector<Tensor> tensors;
  const Model model = WithTensors(file_, model_, encoding, tensors);
  EngineOptions options;
  options.n_ctx = options_.n_ctx;
  options.n_threads = team_.size();
  options.team = &team_;
  return std::make_unique<Engine>(file_, model, options);
}

Trial AutoQuantizer::Try(std::string recipe, const Encoding& encoding) {
  const Trial trial{std::move(recipe), PlannedBytes(file_, encoding.types), judge_.Measure(*MakeEngine(encoding))};
  if (options_.on_trial) options_.on_trial(trial);
  return trial;
}

const Encoding& AutoQuantizer::Search() {
  Try("Q4_0, plain rounding", EncodePlain(Uniform(DType::kQ4_0)));
  best_ = EncodePlain(Uniform(DType::kQ8_0));
  const Trial widest = Try("Q8_0, plain rounding", best_);
  if (widest.judgement.loss > options_.max_loss)
    throw Error("even 8 bits lose {:.3f} % of perplexity on this text, more than {:.3f} %: allow a larger --max-loss",
                100 * widest.judgement.loss, 100 * options_.max_loss);
  std::vector<DType> types = OwnTypes();
  for (const Candidate& candidate : candidates_) types[candidate.tensor] = candidate.levels.front().type;
  Encoding encoding = EncodeInOrder(std::move(types), nullptr);
  const Trial narrowest = Try(Shares(encoding.types), encoding);
  if (narrowest.judgement.loss <= options_.max_loss) return best_ = std::move(encoding);
  WeighEmbedding(encoding.types, narrowest.judgement.kl);
  PlanNarrowings();
  if (narrowings_.empty()) return best_;

  // Loss grows with the error; the bracket closes by linear interpolation, a little to the safe side.
  struct End {
    size_t n_narrowed;
    double error, loss, bytes;
  };
  End good{0, 0, widest.judgement.loss, static_cast<double>(widest.file_bytes)};
  End bad{narrowings_.size(), narrowings_.back().error, narrowest.judgement.loss,
          static_cast<double>(narrowest.file_bytes)};
  const Encoding* known = nullptr;
  for (int i = 0; i < kMaxMixtures && good.bytes - bad.bytes > kSizeTolerance * good.bytes; ++i) {
    const double part = std::clamp((options_.max_loss - good.loss) / (bad.loss - good.loss), 0.08, 0.92);
    const double error = good.error + 0.97 * part * (bad.error - good.error);
    size_t n_narrowed = good.n_narrowed + 1;
    while (n_narrowed + 1 < bad.n_narrowed && narrowings_[n_narrowed].error <= error) ++n_narrowed;
    if (n_narrowed >= bad.n_narrowed) break;
    encoding = EncodeInOrder(TypesAfter(n_narrowed), known);
    const Trial trial = Try(Shares(encoding.types), encoding);
    const bool within = trial.judgement.loss <= options_.max_loss;
    (within ? good : bad) = {n_narrowed, narrowings_[n_narrowed - 1].error, trial.judgement.loss,
                             static_cast<double>(trial.file_bytes)};
    if (!within) continue;
    best_ = std::move(encoding);
    known = &best_;
  }
  return best_;
}

}  // namespace thermocline
