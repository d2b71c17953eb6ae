#include "runtime/layerwise.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "cpu/isa.h"
#include "models/check.h"
#include "runtime/engine.h"
#include "runtime/progress.h"
#include "runtime/quantizer.h"

namespace thermocline {
namespace {

// Over feedback's damping: how inputs have changed is learned from as few tokens, and is mostly noise. On SmolLM2, its
// hidden state rotated, its layers in IQ4_NL (each block rounded once, in order) and learned from 7690 tokens, the KL
// on 3577 predictions of other text is 0.0528 where weights follow nothing, and 0.0353 and 0.0333 with 1 and 3.
constexpr float kDriftDamping = 3;

Tensor FloatTable(const float* data, int64_t n, int64_t k) {
  return {.name = "",
          .type = DType::kF32,
          .ne = {k, n, 1, 1},
          .offset = 0,
          .data = reinterpret_cast<const uint8_t*>(data),
          .bytes = static_cast<uint64_t>(n * k) * sizeof(float),
          .info_offset = 0};
}

// A list of ops as a model of its own, behind which somebody sees what stands in a slot: a product of one output, which
// nobody reads, reads it.
class Slice {
 public:
  // `tensors`: the file's, or what has become of them. `hidden`: a table of what kHidden holds where the ops begin, by
  // token; null where they begin with the embedding. `product`: one of the ops whose input is seen as well, or null.
  Slice(const GgufFile& file, const Model& whole, const std::vector<Tensor>& tensors, const Tensor* hidden,
        std::span<const Op> ops, Slot seen, const Op* product, const EngineOptions& options) {
    Model model;
    model.config = whole.config;
    model.program.width = whole.program.width;
    model.program.width[static_cast<size_t>(Slot::kPartial)] = 1;
    std::map<WeightId, WeightId> ids;
    const auto take = [&](WeightId& id) {
      if (id < 0) return;
      const auto [at, is_new] = ids.try_emplace(id, static_cast<WeightId>(model.weights.size()));
      if (is_new) {
        Weight weight = whole.weights[id];
        weight.tensor = &tensors[static_cast<size_t>(weight.tensor - file.tensors().data())];
        model.weights.push_back(weight);
      }
      id = at->second;
    };
    if (hidden != nullptr) {
      model.config.n_vocab = static_cast<int>(hidden->ne[1]);
      model.program.ops.push_back({.kind = OpKind::kEmbed, .out = Slot::kHidden, .weight = 0});
      model.weights.push_back({.tensor = hidden, .matrix = true, .n = hidden->ne[1], .k = hidden->ne[0]});
    }
    for (Op op : ops) {
      for (WeightId* id : {&op.weight, &op.bias, &op.positions, &op.rope_factors}) take(*id);
      for (int i = 0; i < op.n_projections; ++i) {
        take(op.projections[i].weight);
        take(op.projections[i].bias);
      }
      op.wanted_rows = false;
      model.program.ops.push_back(op);
    }
    const int width = whole.program.width[static_cast<size_t>(seen)];
    const std::vector<float> zeros(static_cast<size_t>(width));
    const Tensor unread = FloatTable(zeros.data(), 1, width);
    Op see{.kind = OpKind::kLinear, .in = seen, .out = Slot::kPartial, .n_projections = 1};
    see.end = seen == Slot::kGate ? width : 0;
    see.projections[0] = {.weight = static_cast<WeightId>(model.weights.size()), .bias = -1, .out = Slot::kPartial};
    model.weights.push_back({.tensor = &unread, .matrix = true, .n = 1, .k = width});
    model.program.ops.push_back(see);
    engine_ = std::make_unique<Engine>(file, model, options);
    rows_.resize(static_cast<size_t>(kMaxBatchRows * width));
    const WeightId key = product == nullptr ? -1 : ids.at(product->projections[0].weight);
    if (product != nullptr)
      inputs_.resize(static_cast<size_t>(kMaxBatchRows * whole.program.width[static_cast<size_t>(product->in)]));
    engine_->SetInputTap([this, key](const Op& op, int64_t row, std::span<const float> x) {
      const auto put = [&](std::vector<float>& rows) {
        std::copy(x.begin(), x.end(), rows.begin() + row * std::ssize(x));
      };
      if (op.out == Slot::kPartial) put(rows_);
      if (op.kind == OpKind::kLinear && op.projections[0].weight == key) put(inputs_);
    });
    sequence_ = engine_->NewSequence();
  }

  Slice(const Slice&) = delete;
  Slice& operator=(const Slice&) = delete;

  // The next rows of a chunk, or the first of one.
  void Step(std::span<const TokenId> tokens, int position) {
    engine_->Truncate(sequence_, position);
    batch_.clear();
    for (const TokenId token : tokens)
      batch_.push_back({token, sequence_, position + static_cast<int>(batch_.size()), RowKind::kPrompt, false});
    engine_->Step(batch_);
  }
  // (n, width) of the last step's n rows: what stood in the slot, and what the product read.
  std::vector<float>& rows() { return rows_; }
  std::vector<float>& inputs() { return inputs_; }

 private:
  std::vector<float> rows_, inputs_;
  std::unique_ptr<Engine> engine_;
  int sequence_ = 0;
  Batch batch_;
};

class Encoder {
 public:
  Encoder(const GgufFile& file, const Model& model, std::vector<DType> types, const Feedback* embedding,
          std::span<const TokenId> tokens, int n_ctx, Team& team, const Encoding* known)
      : file_(file),
        model_(model),
        types_(std::move(types)),
        embedding_(embedding),
        known_(known),
        tokens_(tokens),
        ops_(VectorOpsFor(ChooseIsa())),
        team_(team),
        options_{.n_ctx = n_ctx, .n_threads = team_.size(), .team = &team_},
        rounded_(file.tensors()),
        bytes_(file.tensors().size()) {
    for (size_t i = 0; i < tokens.size(); ++i) row_ids_.push_back(static_cast<TokenId>(i));
  }

  Encoding Encode() {
    const std::span ops = model_.program.ops;
    CHECK(ops[0].kind == OpKind::kEmbed);
    Progress progress("quantizing", "");
    CHECK(ops[0].positions < 0 || !IsToBeEncoded(ops[0].positions));
    TakeKnown(ops[0].weight);
    EncodeWeight(ops[0].weight, embedding_, nullptr);
    for (const int side : {kSource, kRounded}) Advance(side, ops.first(1), tokens_, true);
    for (size_t begin = 1, end = 0; begin < ops.size(); begin = end) {
      for (end = begin + 1; end < ops.size() && !BeginsBlock(ops[end]);) ++end;
      EncodeBlock(ops.subspan(begin, end - begin), end == ops.size());
      progress.Update(static_cast<int64_t>(end), std::ssize(ops));
    }
    return {std::move(types_), std::move(bytes_)};
  }

 private:
  static constexpr int kSource = 0, kRounded = 1;

  // What kHidden holds where a block begins, of all tokens.
  struct Hidden {
    std::vector<float> rows;
    Tensor table;
  };

  // Attention, FFN and output each begin with a norm, behind which nothing is read that stood there before but kHidden.
  static bool BeginsBlock(const Op& op) { return op.kind == OpKind::kNorm && op.in == Slot::kHidden; }

  size_t TensorOf(WeightId id) const { return static_cast<size_t>(model_.weights[id].tensor - file_.tensors().data()); }
  bool IsToBeEncoded(WeightId id) const {
    const size_t i = TensorOf(id);
    return types_[i] != file_.tensors()[i].type && bytes_[i].empty();
  }
  bool HasWorkIn(const Op& op) const {
    return op.kind == OpKind::kLinear &&
           std::any_of(op.projections.begin(), op.projections.begin() + op.n_projections,
                       [&](const Projection& projection) { return IsToBeEncoded(projection.weight); });
  }

  Slice MakeSlice(int side, std::span<const Op> ops, Slot seen, const Op* product = nullptr,
                  bool embeds = false) const {
    return {file_,
            model_,
            side == kSource ? file_.tensors() : rounded_,
            embeds ? nullptr : &hidden_[side].table,
            ops,
            seen,
            product,
            options_};
  }
  // step(tokens, position of the first in its chunk)
  template <typename Step>
  void ForSteps(std::span<const TokenId> tokens, const Step& step) const {
    for (size_t at = 0; at < tokens.size();) {
      const auto position = static_cast<int>(at % static_cast<size_t>(options_.n_ctx));
      const auto n = std::min<size_t>(tokens.size() - at, std::min(kMaxBatchRows, options_.n_ctx - position));
      step(tokens.subspan(at, n), position);
      at += n;
    }
  }

  // Past these ops.
  void Advance(int side, std::span<const Op> ops, std::span<const TokenId> tokens, bool embeds = false) {
    Slice slice = MakeSlice(side, ops, Slot::kHidden, nullptr, embeds);
    std::vector<float> next;
    ForSteps(tokens, [&](std::span<const TokenId> step, int position) {
      slice.Step(step, position);
      Append(slice.rows(), step.size(), next);
    });
    SetHidden(side, std::move(next));
  }
  void Append(const std::vector<float>& rows, size_t n_rows, std::vector<float>& next) const {
    next.insert(next.end(), rows.begin(), rows.begin() + static_cast<int64_t>(n_rows) * model_.config.n_embd);
  }
  void SetHidden(int side, std::vector<float> rows) {
    hidden_[side].rows = std::move(rows);
    hidden_[side].table = FloatTable(hidden_[side].rows.data(), std::ssize(tokens_), model_.config.n_embd);
  }

  void EncodeBlock(std::span<const Op> block, bool is_last) {
    std::vector<size_t> products;
    for (size_t i = 0; i < block.size(); ++i) {
      for (int j = 0; j < block[i].n_projections; ++j) TakeKnown(block[i].projections[j].weight);
      if (HasWorkIn(block[i])) products.push_back(i);
    }
    for (const size_t i : products) EncodeProduct(block, i, !is_last && i == products.back());
    if (is_last) return;
    if (products.empty()) Advance(kSource, block, row_ids_);
    Advance(kRounded, block, row_ids_);
  }

  // The matrices of a product. The source goes past the block on the way if it `advances`.
  void EncodeProduct(std::span<const Op> block, size_t index, bool advances) {
    const Op& op = block[index];
    const std::span before = block.first(index);
    const std::span projections(op.projections.data(), static_cast<size_t>(op.n_projections));
    Slice source = advances ? MakeSlice(kSource, block, Slot::kHidden, &op) : MakeSlice(kSource, before, op.in);
    Slice rounded = MakeSlice(kRounded, before, op.in);
    std::vector<float>& wanted = advances ? source.inputs() : source.rows();
    std::vector<float> next;
    const int64_t k = model_.weights[projections[0].weight].k;
    std::vector<float> gram(static_cast<size_t>(k * k));
    Drift drift{.now{}, .inputs = gram};
    ForSteps(row_ids_, [&](std::span<const TokenId> step, int position) {
      const auto n_rows = static_cast<int>(step.size());
      source.Step(step, position);
      rounded.Step(step, position);
      if (advances) Append(source.rows(), step.size(), next);
      const std::vector<float> factors = EvenOut(rounded.rows().data(), k, n_rows);
      for (int64_t i = 0; i < n_rows * k; ++i) wanted[i] = wanted[i] * factors[i / k] - rounded.rows()[i];
      const auto add = [&](const std::vector<float>& a, int64_t begin, int64_t end, int64_t first,
                           std::vector<float>& sum) {
        ops_.add_outer_products({a.data() + begin, k, rounded.rows().data() + first, k, sum.data() + begin * k + first,
                                 k, end - begin, k - first, n_rows});
      };
      team_.Run([&](Team::Member& member) {
        member.For(k, kGramRows, [&](int64_t begin, int64_t end) {
          add(rounded.rows(), begin, end, begin, gram);
          add(wanted, begin, end, 0, drift.inputs);
        });
      });
    });
    if (advances) SetHidden(kSource, std::move(next));
    for (std::vector<float>* sums : {&gram, &drift.inputs})
      for (float& sum : *sums) sum /= static_cast<float>(tokens_.size());
    Feedback feedback;
    team_.Run([&](Team::Member& member) {
      member.For(2, 1, [&](int64_t i, int64_t) {
        const float damping = Damping(k, std::ssize(tokens_)) * (i == 0 ? 1 : kDriftDamping);
        (i == 0 ? feedback : drift.now) = FactorFeedback(gram, k, damping, ops_);
      });
    });
    for (const Projection& projection : projections) EncodeWeight(projection.weight, &feedback, &drift);
  }

  void TakeKnown(WeightId id) {
    const size_t i = TensorOf(id);
    if (known_ != nullptr && known_->types[i] != types_[i]) known_ = nullptr;
    if (known_ != nullptr && IsToBeEncoded(id)) SetBytes(i, known_->bytes[i]);
  }
  void EncodeWeight(WeightId id, const Feedback* feedback, const Drift* drift) {
    if (!IsToBeEncoded(id)) return;
    const size_t i = TensorOf(id);
    SetBytes(i, EncodeTensor(file_, file_.tensors()[i], types_[i], feedback, team_, nullptr, drift));
  }
  void SetBytes(size_t i, std::vector<uint8_t> bytes) {
    bytes_[i] = std::move(bytes);
    rounded_[i].type = types_[i];
    rounded_[i].data = bytes_[i].data();
    rounded_[i].bytes = bytes_[i].size();
  }

  const GgufFile& file_;
  const Model& model_;
  std::vector<DType> types_;
  const Feedback* const embedding_;
  const Encoding* known_;  // null from where something differs
  const std::span<const TokenId> tokens_;
  const VectorOps& ops_;
  Team& team_;
  const EngineOptions options_;
  std::vector<Tensor> rounded_;              // the file's, as far as they have been encoded
  std::vector<std::vector<uint8_t>> bytes_;  // by tensor
  std::vector<TokenId> row_ids_;             // of hidden_, by token of the text
  Hidden hidden_[2];                         // kSource, kRounded
};

}  // namespace

Model WithTensors(const GgufFile& file, const Model& model, const Encoding& encoding, std::vector<Tensor>& tensors) {
  tensors = file.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (encoding.types[i] == tensors[i].type) continue;
    tensors[i].type = encoding.types[i];
    tensors[i].data = encoding.bytes[i].data();
    tensors[i].bytes = encoding.bytes[i].size();
  }
  Model encoded = model;
  for (Weight& weight : encoded.weights)
    weight.tensor = &tensors[static_cast<size_t>(weight.tensor - file.tensors().data())];
  return encoded;
}

Encoding EncodeLayerwise(const GgufFile& file, const Model& model, std::vector<DType> types, const Feedback* embedding,
                         std::span<const TokenId> tokens, int n_ctx, Team& team, const Encoding* known) {
  return Encoder(file, model, std::move(types), embedding, tokens, n_ctx, team, known).Encode();
}

}  // namespace thermocline
