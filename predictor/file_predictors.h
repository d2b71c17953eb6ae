// Predictors that came with the model, in PowerInfer's files (arXiv:2312.12456 sec. 5.1).
#pragma once

#include "models/gguf.h"
#include "models/model.h"
#include "predictor/heat_predictors.h"

namespace thermocline {

// Those of a model that has some, for ReLU; nobody has judged them, so that they are not complete(). Throws Error for
// numbers that are none.
HeatPredictors ReadFilePredictors(const GgufFile& file, const Model& model);

}  // namespace thermocline
