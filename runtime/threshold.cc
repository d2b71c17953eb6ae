#include "runtime/threshold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "models/error.h"
#include "runtime/judge.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

// Of each layer by itself, whose cost is then its sensitivity times SquaresBelow.
constexpr double kProbedSparsity = 0.5;
constexpr int64_t kSensitivityPieces = 2, kChoosePieces = 16, kJudgePieces = 16;
// The judged text is audited this often, so that what an audit finds later has something to be held against.
constexpr int64_t kJudgedAudit = 16;
constexpr double kRarestAudit = 1e9;  // tokens from an audited one to the next, at most

std::span<const TokenId> Pieces(std::span<const TokenId> tokens, int64_t n, int n_ctx) {
  return tokens.first(std::min(tokens.size(), static_cast<size_t>(n * n_ctx)));
}

class Calibrator {
 public:
  Calibrator(Engine& engine, Heat& heat) : engine_(engine), heat_(heat) {}

  // KL over the share of squared activations left out, of this layer alone.
  float Sensitivity(const Judge& judge, size_t layer) {
    std::vector<float> levels(heat_.layers.size());
    levels[layer] = heat_.Level(static_cast<int>(layer), kProbedSparsity);
    engine_.SetNeuronLevels(levels);
    const double squares = heat_.SquaresBelow(static_cast<int>(layer), kProbedSparsity);
    // Noise may come out below zero; an insensitive layer still costs more the more of it is left out.
    constexpr double kLeastKl = 1e-7, kLeastSquares = 1e-9;
    return static_cast<float>(std::max(judge.Measure(engine_).kl, kLeastKl) / std::max(squares, kLeastSquares));
  }

  std::vector<float> Levels(double mean) const {
    const std::vector<double> sparsity = SpreadSparsity(heat_, heat_.sensitivity, mean);
    std::vector<float> levels;
    for (size_t i = 0; i < sparsity.size(); ++i) levels.push_back(heat_.Level(static_cast<int>(i), sparsity[i]));
    return levels;
  }

  // The largest mean whose rise stays within.
  double LargestWithin(const Judge& judge, double max_rise) {
    constexpr int kHalvings = 8;
    double low = 0, high = kMaxLayerSparsity;
    for (int i = 0; i < kHalvings; ++i) {
      const double mean = (low + high) / 2;
      engine_.SetNeuronLevels(Levels(mean));
      (judge.Measure(engine_).loss <= max_rise ? low : high) = mean;
    }
    return low;
  }

  ThresholdPoint Measure(const Judge& judge, double mean) {
    ThresholdPoint point{static_cast<float>(mean), 0, Levels(mean), {}};
    engine_.SetNeuronLevels(point.levels);
    engine_.SetAudit(kJudgedAudit);
    engine_.TakeAudit();
    const Judgement judgement = judge.Measure(engine_);
    const FfnAudit audit = engine_.TakeAudit();
    engine_.SetAudit(0);
    point.rise = static_cast<float>(judgement.loss);
    for (const double missed : audit.missed)
      point.missed.push_back(static_cast<float>(missed / static_cast<double>(std::max<int64_t>(1, audit.tokens))));
    Note("without {:4.1f} % of neurons: {:+.2f} +- {:.2f} % perplexity", 100 * mean, 100 * judgement.loss,
         100 * judgement.loss_error);
    return point;
  }

  // Its place in heat.thresholds.
  int Add(const Judge& judge, double mean) {
    auto& points = heat_.thresholds;
    const auto at = std::lower_bound(points.begin(), points.end(), static_cast<float>(mean),
                                     [](const ThresholdPoint& point, float value) { return point.sparsity < value; });
    const auto index = static_cast<int>(at - points.begin());
    if (at != points.end() && at->sparsity == static_cast<float>(mean)) return index;
    points.insert(at, Measure(judge, mean));
    if (heat_.chosen_threshold >= index) ++heat_.chosen_threshold;
    return index;
  }

 private:
  Engine& engine_;
  Heat& heat_;
};

}  // namespace

void CalibrateThresholds(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> choose,
                         std::span<const TokenId> judge, const ThresholdRequest& request, std::unique_ptr<Engine> dense,
                         const std::function<std::unique_ptr<Engine>()>& make_sparse,
                         const std::function<void(const Heat&)>& on_save, Heat& heat) {
  if (std::ssize(FindSparseFfns(model, FfnMode::kThreshold)) != model.config.n_layer)
    throw Error(
        "thresholds are for FFNs with a gate, without a bias of up, and of widths that are multiples of 32; this "
        "model's are not");
  const int n_ctx = request.n_ctx;
  const auto make_judge = [&](std::span<const TokenId> tokens, int64_t pieces) {
    return Judge(*dense, tokenizer, Pieces(tokens, pieces, n_ctx), n_ctx, RowKind::kGenerated);
  };
  const Judge sensitivity = make_judge(choose, kSensitivityPieces), chooser = make_judge(choose, kChoosePieces);
  const Judge held_out = make_judge(judge, kJudgePieces);
  dense.reset();
  const std::unique_ptr<Engine> engine = make_sparse();
  Calibrator calibrator(*engine, heat);
  heat.sensitivity.resize(heat.layers.size(), -1);
  Note("measuring what each of {} layers bears", heat.layers.size());
  for (size_t layer = 0; layer < heat.layers.size(); ++layer) {
    if (heat.sensitivity[layer] >= 0) continue;
    heat.sensitivity[layer] = calibrator.Sensitivity(sensitivity, layer);
    on_save(heat);
  }
  for (const double mean : request.means) {
    calibrator.Add(held_out, mean);
    on_save(heat);
  }
  if (!request.max_rise) return;
  const double mean = calibrator.LargestWithin(chooser, *request.max_rise);
  if (mean == 0) {
    Note("leaving out even a hundredth of neurons costs more than {:.2f} % of perplexity", 100 * *request.max_rise);
    return;
  }
  heat.chosen_threshold = calibrator.Add(held_out, mean);
  on_save(heat);
}

ThresholdAudit::ThresholdAudit(Engine& engine, ThresholdPoint point, double share)
    : engine_(engine), point_(std::move(point)), first_levels_(point_.levels) {
  window_.missed.resize(point_.levels.size());
  engine_.SetAudit(std::llround(std::min(1 / share, kRarestAudit)));
  engine_.SetStepHook([this] { AfterStep(); });
}

ThresholdAudit::~ThresholdAudit() {
  engine_.SetStepHook({});
  engine_.SetAudit(0);
}

void ThresholdAudit::AfterStep() {
  const FfnAudit audit = engine_.TakeAudit();
  if (audit.tokens == 0) return;
  tokens_ += audit.tokens;
  window_.tokens += audit.tokens;
  missed_ += std::accumulate(audit.missed.begin(), audit.missed.end(), 0.0) / static_cast<double>(audit.missed.size());
  for (size_t i = 0; i < audit.missed.size(); ++i) window_.missed[i] += audit.missed[i];
  if (window_.tokens < kWindow) return;
  bool lowered = false;
  for (size_t i = 0; i < window_.missed.size(); ++i) {
    const double missed = window_.missed[i] / static_cast<double>(window_.tokens);
    const double limit = kAuditSlack * point_.missed[i];
    if (missed <= limit || point_.levels[i] == 0) continue;
    // Squares below a level grow about as its third power.
    point_.levels[i] *= static_cast<float>(std::cbrt(limit / missed));
    lowered = true;
  }
  window_ = {0, std::vector<double>(window_.missed.size())};
  if (lowered) engine_.SetNeuronLevels(point_.levels);
}

int ThresholdAudit::n_lowered() const {
  int n = 0;
  for (size_t i = 0; i < first_levels_.size(); ++i) n += point_.levels[i] < first_levels_[i];
  return n;
}

std::string ThresholdAudit::Describe() const {
  if (tokens_ == 0) return {};
  const double expected =
      std::accumulate(point_.missed.begin(), point_.missed.end(), 0.0) / static_cast<double>(point_.missed.size());
  std::string text = fmt::format("audit: {} tokens, FFNs miss {:.1f} % ({:.1f} % when calibrated)", tokens_,
                                 100 * missed_ / static_cast<double>(tokens_), 100 * expected);
  if (const int n = n_lowered(); n > 0) text += fmt::format(", levels lowered in {} layers", n);
  return text;
}

}  // namespace thermocline
