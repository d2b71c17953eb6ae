#include "cpu/panel_copy.h"

#include <doctest/doctest.h>

#include <cstring>

#include "tests/models/tiny_model.h"

namespace thermocline {
namespace {

// Panels [begin, end) of what the op sends, unit by unit from the last one on.
std::vector<uint8_t> Sent(const Weights& weights, const Op& op, int64_t bytes) {
  const Buffer out(bytes, "a test");
  std::memset(out.data(), 0xa5, static_cast<size_t>(bytes));
  const PanelCopy copy(weights, op);
  for (int64_t unit = copy.n_units(); unit-- > 0;) copy.Copy(unit, out.data());
  return {out.data(), out.data() + bytes};
}

// Every weight of a layer's products, in pieces of so many panels: what the file's rows become.
void CheckPieces(const TinyOptions& options, FfnMode ffn, int64_t together) {
  const GgufWriter writer = TinyModel(options);
  const GgufFile file = writer.Open();
  const Model model = Model::FromGguf(file);
  Team team(1);
  LoadOptions load;
  load.ffn = ffn;
  const Weights weights(file, model, team, ChooseIsa(), load);
  int n_pieces = 0;
  for (const Op& product : model.program.ops) {
    if (product.kind != OpKind::kLinear || product.layer < 0) continue;
    for (int p = 0; p < product.n_projections; ++p) {
      const WeightId id = product.projections[p].weight;
      const Weight& weight = model.weights[id];
      const DType type = weight.tensor->type;
      CAPTURE(std::string(weight.tensor->name));
      const int64_t n_panels = (weight.n + kPanelRows - 1) / kPanelRows;
      for (int64_t begin = 0; begin < n_panels; begin += together, ++n_pieces) {
        const int64_t end = std::min(begin + together, n_panels), n = std::min(end * kPanelRows, weight.n);
        const int64_t bytes = PackedBytes(type, n - begin * kPanelRows, weight.k);
        const Buffer expected(bytes, "a test");
        PackPanelRun(type, {weight.data(), weight.row_bytes()}, n, weight.k, begin, end, ChooseIsa(), expected.data());
        const Op op{.kind = OpKind::kSendPanels,
                    .layer = product.layer,
                    .in = product.in,
                    .weight = id,
                    .begin = static_cast<int>(begin),
                    .end = static_cast<int>(end)};
        CHECK(std::memcmp(Sent(weights, op, bytes).data(), expected.data(), static_cast<size_t>(bytes)) == 0);
      }
    }
  }
  CHECK(n_pieces > 7 * model.config.n_layer);
}

}  // namespace

TEST_CASE("panel copy: what is sent is what the file's rows become, from panels, rows and bundles") {
  for (const int64_t together : {kPanelsTogether, 3 * kPanelsTogether}) {
    CAPTURE(together);
    for (const DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ8_0, DType::kF16})
      for (const FfnMode ffn : {FfnMode::kDense, FfnMode::kThreshold}) {
        if (type == DType::kF16 && ffn != FfnMode::kDense) continue;  // which bundles hold in another type
        CAPTURE(Info(type).name);
        CheckPieces({.type = type, .n_embd = 352, .n_ff = 1056}, ffn, together);
        CheckPieces({.type = type, .n_embd = 96, .n_ff = 544}, ffn, together);
      }
  }
}

}  // namespace thermocline
