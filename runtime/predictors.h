// Predictors of which neurons fire: trained on a text, judged on another.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "models/tokenizer.h"
#include "predictor/heat.h"
#include "predictor/predictor_training.h"
#include "runtime/engine.h"

namespace thermocline {

// Predictors take no more than this share of the model's weights.
inline constexpr double kPredictorShare = 0.1;

struct PredictorRequest {
  double recall = 0.95;  // of what fires, on a part of the text that they are not trained on
  int n_threads = 0;
};

// How to get engines that hold the model; each is gone before the next is asked for.
struct PredictorEngines {
  std::function<std::unique_ptr<Engine>()> dense;
  // With such predictors and levels.
  std::function<std::unique_ptr<Engine>(const HeatPredictors&)> predicted;
};

// Fills heat.predictors, layer by layer; `on_save` sees it after every few. What an earlier run has trained on the same
// text for the same request stays. `train` teaches, `judge`, which fills a piece of n_ctx tokens, says what it is
// worth. Throws Error where the model's FFNs cannot be predicted, or what fires in them is not known yet.
void TrainPredictors(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> train,
                     std::span<const TokenId> judge, const PredictorRequest& request, const PredictorEngines& engines,
                     const std::function<void(const Heat&)>& on_save, Heat& heat);

// What a trained predictor and the signs of the gate's weights find of what fires, both naming as many neurons.
struct PredictorEvaluation {
  struct Layer {
    int64_t rank;
    PredictionCount trained;
    double sign_recall;
  };
  std::vector<Layer> layers;
  int64_t tokens = 0;
  double perplexity = 0, rise = 0, rise_error = 0;  // of the dense model; rise: 0.01 is 1 % over it
};
// Of predictors that are complete, or the model file's.
PredictorEvaluation EvaluatePredictors(const Model& model, const Tokenizer& tokenizer, std::span<const TokenId> tokens,
                                       const Heat& heat, const PredictorEngines& engines);
std::string DescribeEvaluation(const PredictorEvaluation& evaluation);

// The levels of |act(gate)| above which a neuron fires: 0 with ReLU, else those of the threshold that was chosen, or
// the largest that is calibrated. Throws Error where none is.
std::vector<float> FiringLevels(const Heat& heat);

}  // namespace thermocline
