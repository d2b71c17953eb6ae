#include "predictor/file_predictors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/advice.h"
#include "models/check.h"
#include "models/error.h"
#include "models/quantize.h"

namespace thermocline {
namespace {

// (n, k) of the tensor as Q8_0, in rows of `width` >= k and so many that there are `rows` >= n: what is more is 0.
std::vector<uint8_t> Blocks(const GgufFile& file, const Tensor& tensor, int64_t rows, int64_t width) {
  const int64_t k = tensor.ne[0], n = tensor.ne[1];
  const int64_t row_bytes = k / Info(tensor.type).block * Info(tensor.type).block_bytes;
  const int64_t out_bytes = width / Info(DType::kQ8_0).block * Info(DType::kQ8_0).block_bytes;
  std::vector<uint8_t> blocks(static_cast<size_t>(rows * out_bytes));
  std::vector<float> row(static_cast<size_t>(width));
  for (int64_t i = 0; i < n; ++i) {
    Dequantize(tensor.type, tensor.data + i * row_bytes, k, row.data());
    if (!std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); }))
      throw Error("{} holds a number in row {} that is none. {}", file.Where(tensor), i, kDamagedOrUnsupported);
    Quantize(DType::kQ8_0, row.data(), nullptr, width, blocks.data() + i * out_bytes);
  }
  return blocks;
}

}  // namespace

HeatPredictors ReadFilePredictors(const GgufFile& file, const Model& model) {
  CHECK(!model.predictors.empty());
  // A score that is the threshold names the neuron.
  const auto threshold = static_cast<float>(file.GetFloat("powerinfer.sparse_threshold", 0));
  const float level = std::nextafter(threshold, -std::numeric_limits<float>::infinity());
  HeatPredictors predictors;
  for (const FilePredictor& source : model.predictors) {
    NeuronPredictor& layer = predictors.layers.emplace_back();
    const int64_t rank = source.in->ne[1];
    layer.rank = (rank + kPredictorRankStep - 1) / kPredictorRankStep * kPredictorRankStep;
    layer.in = Blocks(file, *source.in, layer.rank, model.config.n_embd);
    layer.out = Blocks(file, *source.out, model.config.n_ff, layer.rank);
    layer.bias.resize(static_cast<size_t>(model.config.n_ff));
    layer.level = level;
    layer.relu = true;
    predictors.firing_levels.push_back(0);
  }
  return predictors;
}

}  // namespace thermocline
