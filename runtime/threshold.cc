#include "runtime/threshold.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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

}  // namespace thermocline
