// Predictors of which neurons fire, learned from what an FFN read and which of its neurons fired.
//
// A predictor is a linear map of low rank with a bias for each neuron. It begins as the gate's best approximation of
// that rank over the inputs, without which some thousand tokens teach too little, and is trained by Adam
// (arXiv:1412.6980) on binary cross entropy in which neurons that fire weigh as much as all that do not (as
// PowerInfer's are, arXiv:2312.12456 sec. 5.1, and Deja Vu's, arXiv:2310.17157). Its level is then set so that it finds
// the wanted share of what fires.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/neuron_predictor.h"

namespace thermocline {

// Of one layer, token by token.
struct FiringSamples {
  int64_t n_embd = 0, n_ff = 0, n = 0;
  std::vector<uint16_t> inputs;  // (n, n_embd) F16: what the gate reads
  std::vector<uint8_t> fired;    // (n, n_ff / 8) bits, the lowest first

  bool Fired(int64_t token, int64_t neuron) const { return fired[token * n_ff / 8 + neuron / 8] >> neuron % 8 & 1; }
};

// Sums over tokens and neurons.
struct PredictionCount {
  int64_t neurons = 0, fired = 0, predicted = 0, hit = 0;  // hit: fired, and was predicted to
  double Recall() const { return fired > 0 ? static_cast<double>(hit) / static_cast<double>(fired) : 1; }
  double Precision() const { return predicted > 0 ? static_cast<double>(hit) / static_cast<double>(predicted) : 1; }
  double Computed() const { return neurons > 0 ? static_cast<double>(predicted) / static_cast<double>(neurons) : 0; }
  void Add(const PredictionCount& other);
};

struct TrainingRequest {
  double recall = 0.95;       // on the held-out samples
  int64_t max_bytes = 0;      // of the predictor
  double gate_row_bytes = 0;  // what reading the gate of one neuron costs
  uint64_t seed = 1;
};

struct TrainedPredictor {
  NeuronPredictor predictor;
  PredictionCount held_out;
};

// Begins with a rank that follows from how much firing leaves to be known, and doubles it while that lowers the bytes
// that a token reads, of the predictor and of predicted gates, and the predictor stays within its bytes; its rank is at
// least kPredictorRankStep. gate: (n_ff, n_embd). The same samples give the same predictor. Both hold at least one.
// Rank 0: numbers overflowed.
TrainedPredictor TrainPredictor(std::span<const float> gate, const FiringSamples& train, const FiringSamples& held_out,
                                const TrainingRequest& request);

// What firing leaves to be known: the mean over neurons of the entropy of whether one fires, in bits. Low where a layer
// is sparse, and where the same neurons always fire.
double FiringEntropy(const FiringSamples& samples);

PredictionCount CountPredictions(const NeuronPredictor& predictor, const FiringSamples& samples);

// The largest level at which the predictor has that recall on the samples.
float LevelForRecall(const NeuronPredictor& predictor, const FiringSamples& samples, double recall);

int64_t PredictorBytes(int64_t rank, int64_t n_embd, int64_t n_ff);

}  // namespace thermocline
