#include "runtime/predictors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <mutex>

#include "cpu/team.h"
#include "cpu/topology.h"
#include "models/check.h"
#include "models/error.h"
#include "models/hash.h"
#include "predictor/sign_predictor.h"
#include "runtime/judge.h"
#include "runtime/neuron_samples.h"
#include "runtime/profile.h"
#include "runtime/progress.h"
#include "runtime/text_io.h"

namespace thermocline {
namespace {

constexpr int64_t kJudgePieces = 16;
// The judged text is audited this often, so that what an audit finds later has something to be held against.
constexpr int64_t kJudgedAudit = 16;
// Of the training text, the last part chooses ranks and levels; of the memory for samples, its part.
constexpr int64_t kHeldOutPart = 8;

void CheckPredictable(const Model& model) {
  if (std::ssize(FindSparseFfns(model, FfnMode::kPredicted)) != model.config.n_layer)
    throw Error(
        "predictors are for FFNs with a gate, without biases of gate and up, and of widths that are multiples of 32; "
        "this model's are not");
}

uint64_t TrainingHash(std::span<const TokenId> train, std::span<const TokenId> judge, const PredictorRequest& request,
                      std::span<const float> levels) {
  Hash hash;
  hash.Add(TextHash(train));
  hash.Add(TextHash(judge));
  hash.Add({reinterpret_cast<const uint8_t*>(&request.recall), sizeof request.recall});
  hash.Add({reinterpret_cast<const uint8_t*>(levels.data()), levels.size_bytes()});
  return hash.value();
}

int64_t GateRowBytes(const Model& model, WeightId gate) {
  const Weight& weight = model.weights[gate];
  return BundleShape::Rows(BundleShape::UpType(weight.tensor->type), weight.k, weight.n).bundle_bytes();
}

std::vector<float> Floats(const Weight& weight) {
  std::vector<float> floats(static_cast<size_t>(weight.n * weight.k));
  for (int64_t row = 0; row < weight.n; ++row)
    Dequantize(weight.tensor->type, weight.data() + row * weight.row_bytes(), weight.k, floats.data() + row * weight.k);
  return floats;
}

// Layers that are trained at the same time: each takes the gate in floats, what becomes of it in few dimensions, and
// scores, of which none is larger.
size_t LayersTogether(const ModelConfig& config, int n_threads) {
  constexpr double kGates = 3, kMemoryPart = 0.5;
  const double bytes = kGates * sizeof(float) * static_cast<double>(config.n_ff) * config.n_embd;
  const double free = kMemoryPart * static_cast<double>(DetectTopology().memory_available_bytes);
  return static_cast<size_t>(std::clamp(free / bytes, 1.0, static_cast<double>(n_threads)));
}

// Layers that are not trained yet, some at a time, so that all can be saved in between.
void TrainLayers(const Model& model, const std::vector<FiringSamples>& train,
                 const std::vector<FiringSamples>& held_out, const PredictorRequest& request,
                 const std::function<void(const Heat&)>& on_save, Heat& heat) {
  const std::vector<GatedFfn> ffns = FindSparseFfns(model, FfnMode::kPredicted);
  const auto model_bytes = static_cast<double>(PackedWeightBytes(model));
  const auto layer_bytes = static_cast<int64_t>(kPredictorShare * model_bytes / static_cast<double>(ffns.size()));
  Team team(request.n_threads);
  const size_t together = LayersTogether(model.config, team.size());
  std::mutex mutex;
  std::exception_ptr failure;  // as where memory runs out
  Progress progress("training predictors", "layers");
  std::vector<size_t> left;
  for (size_t i = 0; i < ffns.size(); ++i)
    if (heat.predictors.layers[i].rank == 0) left.push_back(i);
  for (size_t begin = 0; begin < left.size(); begin += together) {
    const size_t n = std::min(together, left.size() - begin);
    team.Run([&](Team::Member& member) {
      member.For(static_cast<int64_t>(n), 1, [&](int64_t i, int64_t) {
        const size_t layer = left[begin + static_cast<size_t>(i)];
        const TrainingRequest layer_request{
            .recall = request.recall,
            .max_bytes = layer_bytes,
            .gate_row_bytes = static_cast<double>(GateRowBytes(model, ffns[layer].gate)),
            .seed = layer + 1};
        try {
          heat.predictors.layers[layer] =
              TrainPredictor(Floats(model.weights[ffns[layer].gate]), train[layer], held_out[layer], layer_request)
                  .predictor;
        } catch (...) {
          const std::lock_guard lock(mutex);
          failure = std::current_exception();
        }
      });
    });
    if (failure) std::rethrow_exception(failure);
    for (size_t i = begin; i < begin + n; ++i)
      if (heat.predictors.layers[left[i]].rank == 0)
        throw Error("layer {}: its predictor cannot be trained, as numbers overflow; the model file may be damaged",
                    left[i]);
    progress.Update(static_cast<int64_t>(ffns.size() - left.size() + begin + n), std::ssize(ffns));
    on_save(heat);
  }
}

std::span<const TokenId> Pieces(std::span<const TokenId> tokens, int n_ctx) {
  return tokens.first(std::min(tokens.size(), static_cast<size_t>(kJudgePieces * n_ctx)));
}

// Of the judged samples, by layer.
void CountJudged(const std::vector<FiringSamples>& samples, int n_threads, std::vector<PredictionCount>& counts,
                 const HeatPredictors& predictors) {
  counts.resize(samples.size());
  Team(n_threads).Run([&](Team::Member& member) {
    member.For(std::ssize(samples), 1, [&](int64_t layer, int64_t) {
      counts[layer] = CountPredictions(predictors.layers[layer], samples[layer]);
    });
  });
}

}  // namespace

std::vector<float> FiringLevels(const Heat& heat) {
  if (heat.activation == Activation::kRelu) return std::vector<float>(heat.layers.size());
  if (heat.thresholds.empty())
    throw Error(
        "with the activation {} no neuron is ever silent: which ones count as firing, thresholds must say. Add "
        "--max-rise 1% or --thresholds 0.5",
        Name(heat.activation));
  return heat.chosen_threshold >= 0 ? heat.thresholds[heat.chosen_threshold].levels : heat.thresholds.back().levels;
}

void TrainPredictors(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> train,
                     std::span<const TokenId> judge, const PredictorRequest& request, const PredictorEngines& engines,
                     const std::function<void(const Heat&)>& on_save, Heat& heat) {
  CheckPredictable(model);
  HeatPredictors& predictors = heat.predictors;
  const std::vector<float> levels = FiringLevels(heat);
  const uint64_t hash = TrainingHash(train, judge, request, levels);
  if (predictors.training_hash != hash || predictors.layers.empty())
    predictors = {.training_hash = hash,
                  .layers = std::vector<NeuronPredictor>(heat.layers.size()),
                  .firing_levels = levels,
                  .recall = {},
                  .computed = {},
                  .missed = {}};
  auto dense = engines.dense();
  const size_t n_held_out = train.size() / kHeldOutPart;
  const int64_t memory = SampleMemory();
  const auto collect = [&](std::span<const TokenId> tokens, int64_t bytes) {
    return CollectSamples(*dense, model, tokens, levels, bytes);
  };
  std::vector<FiringSamples> samples = collect(train.first(train.size() - n_held_out), memory);
  std::vector<FiringSamples> held_out = collect(train.last(n_held_out), memory / kHeldOutPart);
  std::vector<FiringSamples> judged = collect(judge, memory / kHeldOutPart);
  const int n_ctx = dense->n_ctx();
  const Judge judge_of(*dense, tokenizer, Pieces(judge, n_ctx), n_ctx, RowKind::kGenerated);
  dense.reset();
  TrainLayers(model, samples, held_out, request, on_save, heat);
  samples.clear();
  std::vector<PredictionCount> counts;
  CountJudged(judged, request.n_threads, counts, predictors);
  const auto engine = engines.predicted(predictors);
  engine->SetAudit(kJudgedAudit);
  predictors.rise = static_cast<float>(judge_of.Measure(*engine).loss);
  const FfnAudit audit = engine->TakeAudit();
  predictors.recall.clear();
  predictors.computed.clear();
  predictors.missed.clear();
  for (size_t layer = 0; layer < counts.size(); ++layer) {
    predictors.recall.push_back(static_cast<float>(counts[layer].Recall()));
    predictors.computed.push_back(static_cast<float>(counts[layer].Computed()));
    predictors.missed.push_back(
        static_cast<float>(audit.missed[layer] / static_cast<double>(std::max<int64_t>(1, audit.tokens))));
  }
  on_save(heat);
}

PredictorEvaluation EvaluatePredictors(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                                       const Heat& heat, const PredictorEngines& engines) {
  CheckPredictable(model);
  const HeatPredictors& predictors = heat.predictors;
  CHECK(std::ssize(predictors.layers) == model.config.n_layer);
  auto dense = engines.dense();
  const int n_ctx = dense->n_ctx(), n_threads = dense->n_threads();
  const std::vector<FiringSamples> samples =
      CollectSamples(*dense, model, tokens, predictors.firing_levels, SampleMemory() / kHeldOutPart);
  const Judge judge(*dense, tokenizer, Pieces(tokens, n_ctx), n_ctx, RowKind::kGenerated);
  dense.reset();
  PredictorEvaluation evaluation;
  const std::vector<GatedFfn> ffns = FindSparseFfns(model, FfnMode::kPredicted);
  std::vector<PredictionCount> counts;
  CountJudged(samples, n_threads, counts, predictors);
  evaluation.layers.resize(ffns.size());
  Team(n_threads).Run([&](Team::Member& member) {
    member.For(std::ssize(ffns), 1, [&](int64_t layer, int64_t) {
      const Weight& gate = model.weights[ffns[layer].gate];
      const SignPredictor signs(gate.tensor->type, gate.data(), gate.n, gate.k);
      evaluation.layers[layer] = {predictors.layers[layer].rank, counts[layer],
                                  signs.RecallAt(samples[layer], counts[layer].predicted)};
    });
  });
  evaluation.tokens = samples[0].n;
  const Judgement judgement = judge.Measure(*engines.predicted(predictors));
  evaluation.perplexity = judge.reference_perplexity();
  evaluation.rise = judgement.loss;
  evaluation.rise_error = judgement.loss_error;
  return evaluation;
}

std::string DescribeEvaluation(const PredictorEvaluation& evaluation) {
  std::string text = fmt::format(
      "{} tokens; percent of a layer's neurons, or of what fires\n{:>5} {:>5} {:>6} {:>9} {:>7} {:>10} {:>17}\n",
      evaluation.tokens, "layer", "rank", "fires", "predicted", "recall", "precision", "recall of signs");
  PredictionCount all;
  double sign_hits = 0;
  const auto row = [&](const std::string& name, const std::string& rank, const PredictionCount& count, double signs) {
    const double fires = static_cast<double>(count.fired) / static_cast<double>(count.neurons);
    text += fmt::format("{:>5} {:>5} {:>6.1f} {:>9.1f} {:>7.1f} {:>10.1f} {:>17.1f}\n", name, rank, 100 * fires,
                        100 * count.Computed(), 100 * count.Recall(), 100 * count.Precision(), 100 * signs);
  };
  for (size_t i = 0; i < evaluation.layers.size(); ++i) {
    const PredictorEvaluation::Layer& layer = evaluation.layers[i];
    row(std::to_string(i), std::to_string(layer.rank), layer.trained, layer.sign_recall);
    all.Add(layer.trained);
    sign_hits += layer.sign_recall * static_cast<double>(layer.trained.fired);
  }
  row("all", "", all, all.fired > 0 ? sign_hits / static_cast<double>(all.fired) : 1);
  text += fmt::format("perplexity {:.4f}, predicted {:+.2f} +- {:.2f} %\n", evaluation.perplexity,
                      100 * evaluation.rise, 100 * evaluation.rise_error);
  return text;
}

}  // namespace thermocline
