#include "predictor/heat_predictors.h"

#include "models/limits.h"
#include "predictor/heat_container.h"

namespace thermocline {
namespace {

constexpr char kHashKey[] = "heat.training";
constexpr char kLevels[] = "predictor.levels", kFiringLevels[] = "predictor.firing_levels";
constexpr char kRecall[] = "predictor.recall", kComputed[] = "predictor.computed", kMissed[] = "predictor.missed";
constexpr char kRise[] = "predictor.rise";
constexpr char kIn[] = "predictor_in", kOut[] = "predictor_out", kBias[] = "predictor_bias";

}  // namespace

int64_t HeatPredictors::bytes() const {
  int64_t bytes = 0;
  for (const NeuronPredictor& layer : layers) bytes += layer.bytes();
  return bytes;
}

void WritePredictors(const HeatPredictors& predictors, int64_t n_ff, HeatWriter& writer) {
  if (predictors.layers.empty()) return;
  writer.header.AddText(kHashKey, HeatHex(predictors.training_hash));
  std::vector<float> levels;
  for (size_t i = 0; i < predictors.layers.size(); ++i) {
    const NeuronPredictor& layer = predictors.layers[i];
    levels.push_back(layer.level);
    if (layer.rank == 0) continue;
    const int64_t n_embd =
        std::ssize(layer.in) / layer.rank * Info(DType::kQ8_0).block / Info(DType::kQ8_0).block_bytes;
    writer.AddBlocks(HeatLayerKey(i, kIn), DType::kQ8_0, layer.in, n_embd, layer.rank);
    writer.AddBlocks(HeatLayerKey(i, kOut), DType::kQ8_0, layer.out, layer.rank, n_ff);
    writer.Add(HeatLayerKey(i, kBias), layer.bias);
  }
  writer.Add(kLevels, levels);
  writer.Add(kFiringLevels, predictors.firing_levels);
  if (!predictors.complete()) return;
  writer.Add(kRecall, predictors.recall);
  writer.Add(kComputed, predictors.computed);
  writer.Add(kMissed, predictors.missed);
  writer.Add<float>(kRise, {&predictors.rise, 1}, {1});
}

HeatPredictors ReadPredictors(const GgufFile& file, const ModelConfig& config) {
  constexpr double kAnyScore = 1e30, kAnyLoss = 1e30, kAnyRise = 1e6;
  const HeatReader reader(file);
  HeatPredictors predictors;
  if (reader.Length(kLevels) == 0) return predictors;
  predictors.training_hash = reader.ReadHex(kHashKey);
  std::vector<float> levels;
  reader.Read(kLevels, config.n_layer, -kAnyScore, kAnyScore, levels);
  reader.Read(kFiringLevels, config.n_layer, 0, kAnyScore, predictors.firing_levels);
  for (size_t i = 0; i < levels.size(); ++i) {
    NeuronPredictor& layer = predictors.layers.emplace_back();
    layer.level = levels[i];
    layer.rank = reader.Length(HeatLayerKey(i, kOut));
    if (layer.rank == 0) continue;
    if (layer.rank % kPredictorRankStep != 0 || layer.rank > kMaxPredictorRank)
      throw Error("{}: layer {} has a predictor of rank {}, no multiple of {} up to {}; train it anew", file.path(), i,
                  layer.rank, kPredictorRankStep, kMaxPredictorRank);
    reader.ReadBlocks(HeatLayerKey(i, kIn), config.n_embd, layer.rank, layer.in);
    reader.ReadBlocks(HeatLayerKey(i, kOut), layer.rank, config.n_ff, layer.out);
    reader.Read(HeatLayerKey(i, kBias), config.n_ff, -kAnyScore, kAnyScore, layer.bias);
  }
  if (reader.Length(kMissed) == 0) return predictors;
  for (size_t i = 0; i < predictors.layers.size(); ++i)
    if (predictors.layers[i].rank == 0)
      throw Error("{}: the predictor of layer {} is missing; train it anew", file.path(), i);
  reader.Read(kRecall, config.n_layer, 0, 1, predictors.recall);
  reader.Read(kComputed, config.n_layer, 0, 1, predictors.computed);
  reader.Read(kMissed, config.n_layer, 0, kAnyLoss, predictors.missed);
  std::vector<float> rise;
  reader.Read(kRise, 1, -1, kAnyRise, rise);
  predictors.rise = rise[0];
  return predictors;
}

}  // namespace thermocline
