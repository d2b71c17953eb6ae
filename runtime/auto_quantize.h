// The search behind `quantize --auto`: the smallest file whose perplexity stays near the source's.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cpu/feedback.h"
#include "cpu/team.h"
#include "models/model.h"
#include "runtime/judge.h"
#include "runtime/layerwise.h"

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

// Tries, each judged on the held-out text: Q4_0 and Q8_0 by plain rounding; all as narrow as can be; and mixtures of
// neighbouring levels, a level being the same type for all whose rows it divides. What is narrow and mixtures are
// encoded layer by layer (runtime/layerwise.h), which makes a bit more worth as much in one tensor as in another, but
// for the embedding, whose worth is measured. So a mixture is narrow from some layer on: what stands before that is as
// in the wider ones, and need not be encoded again.
class AutoQuantizer {
 public:
  // `embedding`, `text`: as of EncodeLayerwise. The judge's reference is the model of `file`.
  AutoQuantizer(const GgufFile& file, const Model& model, const Feedback* embedding, std::span<const TokenId> text,
                const Judge& judge, AutoOptions options);

  // The smallest within the loss. Throws Error where even 8 bits lose more.
  const Encoding& Search();

 private:
  struct Choice {  // a type that a tensor may get
    DType type;
    uint64_t bytes;
    double error;  // of plain rounding: squared, relative to the weights' squares, times their number
  };
  struct Candidate {  // a matrix of the model
    size_t tensor;
    int64_t n, k;
    std::vector<Choice> levels;  // from the narrowest on
  };
  struct Narrowing {  // of one tensor, from one mixture to the next
    size_t tensor;
    DType type;
    double error;  // of the mixture behind it over the widest one's
  };

  void ListCandidates();
  std::vector<float> Sample(const Candidate& candidate) const;  // rows spread over the tensor
  void MeasureErrors();                                         // of each choice
  void ChooseLevels();
  void WeighEmbedding(std::span<const DType> narrow, double narrow_kl);
  void PlanNarrowings();
  std::vector<DType> OwnTypes() const;  // as in the file
  std::vector<DType> Uniform(DType type) const;
  std::vector<DType> TypesAfter(size_t n_narrowed) const;
  std::string Shares(std::span<const DType> types) const;
  Encoding EncodePlain(std::vector<DType> types);
  Encoding EncodeInOrder(std::vector<DType> types, const Encoding* known);
  std::unique_ptr<Engine> MakeEngine(const Encoding& encoding);
  Trial Try(std::string recipe, const Encoding& encoding);

  const GgufFile& file_;
  const Model& model_;
  const Feedback* const embedding_;
  const std::span<const TokenId> text_;
  const Judge& judge_;
  const AutoOptions options_;
  Team team_;
  std::vector<Candidate> candidates_;  // in the order in which they become narrow
  std::vector<Narrowing> narrowings_;
  Encoding best_;
};

}  // namespace thermocline
