// The tiny models of tests/data/tiny with the logits that `transformers` computes for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "runtime/engine.h"

namespace thermocline::test {

struct TinyModel {
  std::string file;
  std::vector<TokenId> tokens;
  std::vector<int> positions;
  std::vector<float> logits;  // (positions, vocabulary)
  float max_abs;

  std::string path() const { return std::string(THERMOCLINE_TEST_DATA "/tiny/") + file; }
};

inline std::vector<TinyModel> TinyModels() {
  std::ifstream in(THERMOCLINE_TEST_DATA "/tiny/expected.json");
  std::vector<TinyModel> models;
  for (const auto& entry : nlohmann::json::parse(in)) {
    TinyModel model{entry["file"], entry["tokens"], entry["positions"], {}, entry["max_abs"]};
    const std::string path = std::string(THERMOCLINE_TEST_DATA "/tiny/") + std::string(entry["logits"]);
    std::ifstream bytes(path, std::ios::binary | std::ios::ate);
    model.logits.resize(static_cast<size_t>(bytes.tellg()) / sizeof(float));
    bytes.seekg(0);
    bytes.read(reinterpret_cast<char*>(model.logits.data()), model.logits.size() * sizeof(float));
    models.push_back(std::move(model));
  }
  return models;
}

inline TinyModel FindTiny(const std::string& file) {
  for (TinyModel& model : TinyModels())
    if (model.file == file) return model;
  throw std::runtime_error("no tiny model " + file);
}

// Logits of every row of `tokens`, fed in spans of `span` rows to a sequence of its own.
inline std::vector<std::vector<float>> Feed(Engine& engine, int sequence, const std::vector<TokenId>& tokens, int span,
                                            RowKind kind = RowKind::kPrompt) {
  std::vector<std::vector<float>> logits;
  for (size_t at = 0; at < tokens.size();) {
    Batch batch;
    for (int i = 0; i < span && at < tokens.size(); ++i, ++at)
      batch.push_back({tokens[at], sequence, static_cast<int>(at), kind, true});
    engine.Step(batch);
    for (size_t i = 0; i < batch.size(); ++i) {
      const auto row = engine.Logits(static_cast<int>(i));
      logits.emplace_back(row.begin(), row.end());
    }
  }
  return logits;
}

// max |d| over max |logit|, at the positions that transformers gives.
inline double LogitError(const TinyModel& model, const std::vector<std::vector<float>>& logits) {
  double worst = 0;
  const size_t n_vocab = model.logits.size() / model.positions.size();
  for (size_t i = 0; i < model.positions.size(); ++i)
    for (size_t j = 0; j < n_vocab; ++j) {
      const double d = std::abs(logits[model.positions[i]][j] - model.logits[i * n_vocab + j]);
      worst = std::isnan(d) ? INFINITY : std::max(worst, d);
    }
  return worst / model.max_abs;
}

}  // namespace thermocline::test
