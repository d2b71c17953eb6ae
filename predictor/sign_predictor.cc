#include "predictor/sign_predictor.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace thermocline {

SignPredictor::SignPredictor(DType type, const uint8_t* rows, int64_t n_ff, int64_t n_embd)
    : n_ff_(n_ff), n_embd_(n_embd), words_((n_embd + 63) / 64), signs_(static_cast<size_t>(n_ff * words_)) {
  const DTypeInfo& info = Info(type);
  std::vector<float> row(static_cast<size_t>(n_embd));
  for (int64_t neuron = 0; neuron < n_ff; ++neuron) {
    Dequantize(type, rows + neuron * (n_embd / info.block * info.block_bytes), n_embd, row.data());
    for (int64_t k = 0; k < n_embd; ++k) signs_[neuron * words_ + k / 64] |= uint64_t{std::signbit(row[k])} << k % 64;
  }
}

std::vector<uint64_t> SignPredictor::SignsOf(const uint16_t* input) const {
  std::vector<uint64_t> signs(static_cast<size_t>(words_));
  for (int64_t k = 0; k < n_embd_; ++k) signs[k / 64] |= uint64_t{static_cast<uint64_t>(input[k] >> 15)} << k % 64;
  return signs;
}

int SignPredictor::Agreeing(int64_t neuron, const uint64_t* signs) const {
  int differing = 0;
  for (int64_t i = 0; i < words_; ++i) differing += std::popcount(signs_[neuron * words_ + i] ^ signs[i]);
  return static_cast<int>(n_embd_) - differing;
}

double SignPredictor::RecallAt(const FiringSamples& samples, int64_t n_predicted) const {
  std::vector<int64_t> all(static_cast<size_t>(n_embd_ + 1)), fired(all.size());  // by how many signs agree
  for (int64_t token = 0; token < samples.n; ++token) {
    const std::vector<uint64_t> signs = SignsOf(samples.inputs.data() + token * n_embd_);
    for (int64_t neuron = 0; neuron < n_ff_; ++neuron) {
      const int agreeing = Agreeing(neuron, signs.data());
      ++all[agreeing];
      fired[agreeing] += samples.Fired(token, neuron);
    }
  }
  double hits = 0, n_fired = 0;
  for (const int64_t n : fired) n_fired += static_cast<double>(n);
  for (auto agreeing = std::ssize(all) - 1; agreeing >= 0 && n_predicted > 0; --agreeing) {
    if (all[agreeing] == 0) continue;
    const double share = std::min(1.0, static_cast<double>(n_predicted) / static_cast<double>(all[agreeing]));
    hits += share * static_cast<double>(fired[agreeing]);
    n_predicted -= all[agreeing];
  }
  return n_fired > 0 ? hits / n_fired : 1;
}

}  // namespace thermocline
