#include "predictor/predictor_training.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>

#include "cpu/float_gemm.h"
#include "models/check.h"
#include "models/quantize.h"
#include "predictor/low_rank.h"

namespace thermocline {
namespace {

constexpr int64_t kBatch = 256;          // samples per step
constexpr int64_t kBeginSamples = 4096;  // that the gate is approximated over
constexpr int kEpochs = 8;
constexpr float kRate = 3e-3f;  // of learning, at first; falls to zero
constexpr float kBeta1 = 0.9f, kBeta2 = 0.99f, kEpsilon = 1e-8f;
constexpr double kLeastLeft = 1e-3;         // of a gate's mean square, that an approximation may seem to leave
constexpr double kLogitPerDeviation = 1.7;  // a normal distribution is about a logistic one of that slope
constexpr double kMostWeight = 20;          // of a neuron that fires
constexpr double kWorthGrowing = 0.98;      // of the bytes that a smaller rank reads

// exp(x) for |x| < 80 within 3e-5 of it, in operations that compilers vectorize.
inline float FastExp(float x) {
  const float scaled = x * 1.44269504f;
  const auto whole = static_cast<int32_t>(scaled + 127.5f) - 127;
  const float part = (scaled - static_cast<float>(whole)) * 0.69314718f;
  const float e = 1 + part * (1 + part * (0.5f + part * (1.f / 6 + part * (1.f / 24 + part * (1.f / 120)))));
  return e * std::bit_cast<float>((whole + 127) << 23);
}

// Numbers that Adam moves.
struct Parameters {
  std::vector<float> value, gradient, mean, square;
  void Resize(size_t n) {
    for (std::vector<float>* v : {&value, &gradient, &mean, &square}) v->resize(n);
  }
  // step: from 1.
  void Update(float rate, int step) {
    const float correct1 = 1 / (1 - std::pow(kBeta1, static_cast<float>(step)));
    const float correct2 = 1 / (1 - std::pow(kBeta2, static_cast<float>(step)));
    for (size_t i = 0; i < value.size(); ++i) {
      const float g = gradient[i];
      mean[i] = kBeta1 * mean[i] + (1 - kBeta1) * g;
      square[i] = kBeta2 * square[i] + (1 - kBeta2) * g * g;
      value[i] -= rate * mean[i] * correct1 / (std::sqrt(square[i] * correct2) + kEpsilon);
    }
  }
};

std::vector<double> FiringFrequency(const FiringSamples& samples) {
  std::vector<double> frequency(static_cast<size_t>(samples.n_ff));
  for (int64_t token = 0; token < samples.n; ++token)
    for (int64_t i = 0; i < samples.n_ff; ++i) frequency[i] += samples.Fired(token, i);
  for (double& value : frequency) value /= static_cast<double>(samples.n);
  return frequency;
}

void LoadInputs(const FiringSamples& samples, std::span<const int64_t> tokens, float* out) {
  for (const int64_t token : tokens)
    for (int64_t i = 0; i < samples.n_embd; ++i) *out++ = HalfToFloat(samples.inputs[token * samples.n_embd + i]);
}

class Trainer {
 public:
  Trainer(std::span<const float> gate, const FiringSamples& samples, uint64_t seed)
      : gate_(gate),
        samples_(samples),
        random_(seed),
        order_(static_cast<size_t>(samples.n)),
        frequency_(FiringFrequency(samples)),
        x_(kBatch * samples.n_embd),
        scores_(kBatch * samples.n_ff) {
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), random_);
    const double mean = std::accumulate(frequency_.begin(), frequency_.end(), 0.0) / static_cast<double>(samples.n_ff);
    weight_ = static_cast<float>(std::clamp((1 - mean) / std::max(mean, 1e-6), 1.0, kMostWeight));
  }

  // The gate's best approximation of that rank, in units of what it leaves of each neuron's gate, so that a score is
  // about the logarithm of the odds. Every neuron's bias is where it fires as often as it does in the samples.
  void Begin(int64_t rank) {
    const int64_t n_embd = samples_.n_embd, n_ff = samples_.n_ff, n = std::min(kBeginSamples, samples_.n);
    std::vector<float> x(n * n_embd);
    LoadInputs(samples_, std::span(order_).first(static_cast<size_t>(n)), x.data());
    LowRank low_rank = ApproximateLowRank(gate_, x, n_embd, rank);
    rank_ = rank;
    in_.Resize(low_rank.in.size());
    out_.Resize(low_rank.out.size());
    bias_.Resize(static_cast<size_t>(n_ff));
    in_.value = std::move(low_rank.in);
    out_.value = std::move(low_rank.out);
    reduced_.resize(static_cast<size_t>(kBatch * rank));
    reduced_gradient_.resize(reduced_.size());
    const std::span<const int64_t> some = std::span(order_).first(static_cast<size_t>(std::min(kBatch, samples_.n)));
    Forward(some);
    std::vector<float> gates(some.size() * static_cast<size_t>(n_ff));
    FloatGemm({Transposed::kB, std::ssize(some), n_ff, n_embd, x_.data(), gate_.data(), gates.data()});
    std::vector<float> column(some.size());
    for (int64_t i = 0; i < n_ff; ++i) {
      double left = 0, all = 0;
      for (size_t token = 0; token < some.size(); ++token) {
        const float gate = gates[token * n_ff + i], score = scores_[token * n_ff + i];
        left += double{gate - score} * (gate - score);
        all += double{gate} * gate;
        column[token] = score;
      }
      const double unit = std::sqrt(std::max({left, kLeastLeft * all, 1e-30}) / static_cast<double>(some.size()));
      const auto scale = static_cast<float>(kLogitPerDeviation / unit);
      for (int64_t r = 0; r < rank; ++r) out_.value[r * n_ff + i] *= scale;
      const auto above = static_cast<size_t>(frequency_[i] * static_cast<double>(column.size()));
      const auto cut = column.begin() + static_cast<std::ptrdiff_t>(std::min(above, column.size() - 1));
      std::nth_element(column.begin(), cut, column.end(), std::greater<>());
      bias_.value[i] = std::log(weight_) - scale * *cut;
    }
  }

  void Train() {
    const int64_t per_epoch = (samples_.n + kBatch - 1) / kBatch, n_steps = kEpochs * per_epoch;
    for (Parameters* p : {&in_, &out_, &bias_}) {
      std::fill(p->mean.begin(), p->mean.end(), 0.f);
      std::fill(p->square.begin(), p->square.end(), 0.f);
    }
    for (int step = 0; step < n_steps; ++step) {
      const int64_t at = step % per_epoch * kBatch, n = std::min(kBatch, samples_.n - at);
      if (at == 0) std::shuffle(order_.begin(), order_.end(), random_);
      const std::span<const int64_t> tokens(order_.data() + at, static_cast<size_t>(n));
      Forward(tokens);
      Backward(tokens);
      const float rate = kRate * (1 - static_cast<float>(step) / static_cast<float>(n_steps));
      in_.Update(rate / std::sqrt(static_cast<float>(samples_.n_embd)), step + 1);
      out_.Update(rate, step + 1);
      bias_.Update(rate, step + 1);
    }
  }

  NeuronPredictor Predictor() const {
    NeuronPredictor predictor{rank_, {}, {}, bias_.value, 0};
    const auto quantize = [](const std::vector<float>& values, std::vector<uint8_t>& out) {
      const DTypeInfo& type = Info(DType::kQ8_0);
      out.resize(values.size() / type.block * type.block_bytes);
      Quantize(type.type, values.data(), nullptr, std::ssize(values), out.data());
    };
    std::vector<float> out(out_.value.size());
    for (int64_t r = 0; r < rank_; ++r)
      for (int64_t i = 0; i < samples_.n_ff; ++i) out[i * rank_ + r] = out_.value[r * samples_.n_ff + i];
    quantize(in_.value, predictor.in);
    quantize(out, predictor.out);
    return predictor;
  }

 private:
  void Forward(std::span<const int64_t> tokens) {
    const auto n = std::ssize(tokens);
    LoadInputs(samples_, tokens, x_.data());
    FloatGemm({Transposed::kB, n, rank_, samples_.n_embd, x_.data(), in_.value.data(), reduced_.data()});
    FloatGemm({Transposed::kNone, n, samples_.n_ff, rank_, reduced_.data(), out_.value.data(), scores_.data()});
  }

  // Turns scores into the gradient of the loss by them, and that into those of the parameters.
  void Backward(std::span<const int64_t> tokens) {
    const auto n = std::ssize(tokens);
    const int64_t n_ff = samples_.n_ff;
    std::fill(bias_.gradient.begin(), bias_.gradient.end(), 0.f);
    const float share = 1 / static_cast<float>(n);
    for (int64_t i = 0; i < n; ++i) {
      float* score = scores_.data() + i * n_ff;
      const uint8_t* fired = samples_.fired.data() + tokens[i] * n_ff / 8;
      for (int64_t j = 0; j < n_ff; ++j) {
        const float y = static_cast<float>(fired[j / 8] >> j % 8 & 1);
        const float s = std::min(std::max(score[j] + bias_.value[j], -40.f), 40.f);
        const float p = 1 / (1 + FastExp(-s));
        const float g = share * (p - y) * (1 + (weight_ - 1) * y);
        score[j] = g;
        bias_.gradient[j] += g;
      }
    }
    FloatGemm({Transposed::kA, rank_, n_ff, n, reduced_.data(), scores_.data(), out_.gradient.data()});
    FloatGemm({Transposed::kB, n, rank_, n_ff, scores_.data(), out_.value.data(), reduced_gradient_.data()});
    FloatGemm({Transposed::kA, rank_, samples_.n_embd, n, reduced_gradient_.data(), x_.data(), in_.gradient.data()});
  }

  const std::span<const float> gate_;
  const FiringSamples& samples_;
  std::mt19937_64 random_;
  std::vector<int64_t> order_;
  float weight_ = 1;  // of a neuron that fires
  int64_t rank_ = 0;
  std::vector<double> frequency_;                  // (n_ff)
  Parameters in_, out_, bias_;                     // (rank, n_embd), (rank, n_ff), (n_ff)
  std::vector<float> x_, scores_;                  // (kBatch, n_embd), (kBatch, n_ff)
  std::vector<float> reduced_, reduced_gradient_;  // (kBatch, rank)
};

// Calls body(first token, n tokens, scores (n, n_ff)) in order, batch by batch.
template <typename Body>
void ForScores(const NeuronPredictor& predictor, const FiringSamples& samples, const Body& body) {
  const int64_t n_embd = samples.n_embd, n_ff = samples.n_ff, rank = predictor.rank;
  std::vector<float> in(rank * n_embd), out(n_ff * rank);
  Dequantize(DType::kQ8_0, predictor.in.data(), std::ssize(in), in.data());
  Dequantize(DType::kQ8_0, predictor.out.data(), std::ssize(out), out.data());
  std::vector<float> x(kBatch * n_embd), reduced(kBatch * rank), scores(kBatch * n_ff);
  std::vector<int64_t> tokens(kBatch);
  for (int64_t at = 0; at < samples.n; at += kBatch) {
    const int64_t n = std::min(kBatch, samples.n - at);
    std::iota(tokens.begin(), tokens.end(), at);
    LoadInputs(samples, std::span(tokens).first(static_cast<size_t>(n)), x.data());
    FloatGemm({Transposed::kB, n, rank, n_embd, x.data(), in.data(), reduced.data()});
    if (predictor.relu)
      for (float& value : reduced) value = std::max(0.0f, value);
    FloatGemm({Transposed::kB, n, n_ff, rank, reduced.data(), out.data(), scores.data()});
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n_ff; ++j) scores[i * n_ff + j] += predictor.bias[j];
    body(at, n, scores.data());
  }
}

// A small one: doubling it costs little until it is too large.
int64_t FirstRank(const FiringSamples& samples) {
  constexpr double kInputsPerBit = 16;
  const double rank = FiringEntropy(samples) * static_cast<double>(samples.n_embd) / kInputsPerBit;
  return std::max<int64_t>(1, std::llround(rank / kPredictorRankStep)) * kPredictorRankStep;
}

}  // namespace

void PredictionCount::Add(const PredictionCount& other) {
  neurons += other.neurons;
  fired += other.fired;
  predicted += other.predicted;
  hit += other.hit;
}

int64_t PredictorBytes(int64_t rank, int64_t n_embd, int64_t n_ff) {
  const DTypeInfo& type = Info(DType::kQ8_0);
  return rank * (n_embd + n_ff) / type.block * type.block_bytes + n_ff * static_cast<int64_t>(sizeof(float));
}

double FiringEntropy(const FiringSamples& samples) {
  double sum = 0;
  for (const double p : FiringFrequency(samples))
    if (p > 0 && p < 1) sum -= p * std::log2(p) + (1 - p) * std::log2(1 - p);
  return sum / static_cast<double>(samples.n_ff);
}

PredictionCount CountPredictions(const NeuronPredictor& predictor, const FiringSamples& samples) {
  PredictionCount count;
  ForScores(predictor, samples, [&](int64_t first, int64_t n, const float* scores) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < samples.n_ff; ++j) {
        const bool predicted = scores[i * samples.n_ff + j] > predictor.level, fired = samples.Fired(first + i, j);
        count.predicted += predicted;
        count.fired += fired;
        count.hit += predicted && fired;
      }
  });
  count.neurons = samples.n * samples.n_ff;
  return count;
}

float LevelForRecall(const NeuronPredictor& predictor, const FiringSamples& samples, double recall) {
  std::vector<float> of_fired;
  ForScores(predictor, samples, [&](int64_t first, int64_t n, const float* scores) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < samples.n_ff; ++j)
        if (samples.Fired(first + i, j)) of_fired.push_back(scores[i * samples.n_ff + j]);
  });
  if (of_fired.empty()) return 0;
  const auto missed = static_cast<size_t>((1 - recall) * static_cast<double>(of_fired.size()));
  const auto lowest = of_fired.begin() + static_cast<std::ptrdiff_t>(std::min(missed, of_fired.size() - 1));
  std::nth_element(of_fired.begin(), lowest, of_fired.end());
  return std::nextafter(*lowest, -HUGE_VALF);
}

TrainedPredictor TrainPredictor(std::span<const float> gate, const FiringSamples& train, const FiringSamples& held_out,
                                const TrainingRequest& request) {
  CHECK(train.n > 0 && held_out.n > 0 && train.n_embd % 32 == 0 && train.n_ff % 32 == 0);
  CHECK(std::ssize(gate) == train.n_ff * train.n_embd);
  const auto fits = [&](int64_t rank) {
    return rank <= train.n_embd && PredictorBytes(rank, train.n_embd, train.n_ff) <= request.max_bytes;
  };
  int64_t rank = FirstRank(train);
  while (rank > kPredictorRankStep && !fits(rank)) rank -= kPredictorRankStep;
  Trainer trainer(gate, train, request.seed);
  TrainedPredictor best;
  double least = HUGE_VAL;
  const auto take_if_better = [&](double worth) {
    TrainedPredictor now{trainer.Predictor(), {}};
    now.predictor.level = LevelForRecall(now.predictor, held_out, request.recall);
    if (!std::isfinite(now.predictor.level)) return false;
    now.held_out = CountPredictions(now.predictor, held_out);
    const double bytes = static_cast<double>(now.predictor.bytes()) +
                         now.held_out.Computed() * static_cast<double>(train.n_ff) * request.gate_row_bytes;
    if (bytes > worth * least) return false;
    best = std::move(now);
    least = bytes;
    return true;
  };
  for (;; rank *= 2) {
    trainer.Begin(rank);
    bool better = take_if_better(kWorthGrowing);
    trainer.Train();
    better |= take_if_better(better ? 1 : kWorthGrowing);
    if (!better || !fits(2 * rank)) return best;
  }
}

}  // namespace thermocline
