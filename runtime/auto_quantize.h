// The search behind `quantize --auto`: the smallest file whose perplexity stays near the source's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cpu/team.h"
#include "models/model.h"
#include "runtime/calibration.h"
#include "runtime/judge.h"

namespace thermocline {

struct Trial {
  std::string recipe;
  uint64_t file_bytes;
  Judgement judgement;
};

struct AutoOptions {
  double max_loss = 0.01;
  int n_ctx = 512;  // of all texts
  int n_threads = 0;
  std::function<void(const Trial&)> on_trial{};  // as they come; may be empty
};

// Tries, each judged on the held-out text: Q4_0 by plain rounding, for comparison; all in Q8_0 with error feedback; all
// as narrow as can be, by the type that errs least; and mixtures, each tensor as wide as pays most. The narrow one and
// the mixtures are encoded layer by layer (runtime/layerwise.h). How much a bit more is worth is measured, each tensor
// encoded for itself: what each role costs where it is narrow, and for each tensor how its error falls with the type.
class AutoQuantizer {
 public:
  // `text` is what was calibrated with. `sensitivity_text` is of one chunk at least, and not that: errors are made up
  // for better there than elsewhere, the more so the wider the input. The judge's reference is the model of `file`.
  AutoQuantizer(const GgufFile& file, const Model& model, const Calibration& calibration, std::span<const TokenId> text,
                const Judge& judge, const Tokenizer& tokenizer, std::span<const TokenId> sensitivity_text,
                AutoOptions options);

  // By tensor of the file, the types of the smallest within the loss. Throws Error where even 8 bits lose more.
  std::vector<DType> Search();
  // The tensor as Search had it, where it has another type than in the file.
  const std::vector<uint8_t>& Encoded(size_t tensor) const { return best_[tensor]; }

 private:
  using Bytes = std::vector<std::vector<uint8_t>>;  // by tensor; none where it stays as it is in the file
  struct Choice {                                   // a type that a tensor may get
    DType type;
    uint64_t bytes;
    double error;  // expected squared error of its outputs
    double kl;     // what it adds, measured by its role
  };
  struct Candidate {  // a matrix of the model
    size_t tensor;
    WeightId id;
    int64_t n, k;
    std::string role;
    std::vector<Choice> choices;
  };

  const Feedback* FeedbackOf(size_t tensor) const;
  void ListCandidates();
  std::vector<float> Sample(const Candidate& candidate) const;  // rows spread over the tensor
  void MeasureErrors(Candidate& candidate, std::span<const float> sample) const;
  void MeasureErrors();  // of all
  std::vector<DType> Uniform(DType type) const;
  std::vector<DType> Narrowest() const;
  std::vector<DType> Mixture(double bytes_price) const;
  double PredictedKl(std::span<const DType> types) const;
  std::vector<DType> MixtureOfKl(double kl) const;
  Bytes EncodePlain(std::span<const DType> types);
  // With feedback of what the source's products read.
  Bytes EncodeApart(std::span<const DType> types);
  Bytes EncodeInOrder(std::span<const DType> types);  // runtime/layerwise.h
  std::unique_ptr<Engine> MakeEngine(std::span<const DType> types, const Bytes& bytes) const;
  void MeasureSensitivity(std::span<const DType> narrow);
  std::string Shares(std::span<const DType> types) const;
  Trial Try(std::string recipe, std::span<const DType> types, const Bytes& bytes);

  const GgufFile& file_;
  const Model& model_;
  const Calibration& calibration_;
  const std::span<const TokenId> text_;
  const Judge& judge_;
  const Tokenizer& tokenizer_;
  const std::span<const TokenId> sensitivity_text_;
  const AutoOptions options_;
  Team team_;
  std::vector<Candidate> candidates_;
  std::map<std::pair<size_t, DType>, std::vector<uint8_t>> apart_;
  Bytes best_;
};

}  // namespace thermocline
