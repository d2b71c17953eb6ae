#include "cpu/linear.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/amx_linear.h"
#include "cpu/jit/linear_jit.h"

namespace thermocline {
namespace {

// Up to this many rows pass by the packed weights a few at a time: the weights are then in L2, and both planes of x,
// which generated rows have, cost less than in tiles, for which weights are decoded into memory (16 rows of the 1.1B
// shape on a Xeon: 100 ms a step, 128 in tiles).
constexpr int64_t kFewRows = 16;
// So much of the weights all rows pass by before the next panels.
constexpr int64_t kPassBytes = 128 * 1024;
// From this many rows on, the loop over K blocks is outside the one over panels: what all rows have of a K block then
// stays in L2. Fewer rows stay there whole, and weights are read in order.
constexpr int64_t kRowsOutgrowL2 = 64;
// Where y is read and written for many K blocks, so many rows at most go through them together: what they have of a K
// block and of y, 400 KB for 8 panels, then stays in 1 MB of L2. On a Zen 5 a product of 512 rows and 2048 k is 4 %
// faster so than with y in the last level.
constexpr int64_t kTileRowsTogether = 192, kManyK = 3 * kTileK;
constexpr int kTilePanels = 2;

// Calls run(args of these rows, number of rows) for parts of the m rows, as even as possible and of at most `most`.
template <typename Run>
void InParts(LinearArgs args, int64_t m, int64_t most, const Run& run) {
  for (int64_t parts = (m + most - 1) / most; parts > 0; --parts) {
    const int64_t now = (m + parts - 1) / parts;
    run(args, now);
    args.x += now * args.x_stride_bytes;
    args.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(args.y) + now * args.y_stride_bytes);
    m -= now;
  }
}

}  // namespace

struct LinearKernel::Code {
  Code(Isa isa, const PackedFormat& format, bool poison);
  template <typename Fn>
  Fn Keep(std::unique_ptr<JitCode> code) {
    jit.push_back(std::move(code));
    return jit.back()->Finish<Fn>(poisoned);
  }
  void RunRows(const LinearArgs& args, int64_t m) const;
  void RunTiles(const LinearArgs& args, int64_t m) const;
  void RunKBlock(const LinearArgs& args, int64_t m, int64_t panel, int64_t first_block) const;
  void RunTile(TileArgs args, int64_t m, int panels) const;

  const PackedFormat& format;
  const Isa poisoned;
  std::string_view name = "reference";
  std::vector<std::unique_ptr<JitCode>> jit;
  std::vector<LinearFn> rows[2] = {{nullptr}, {nullptr}};  // by LinearSpec::cached and M; alone: the reference
  LinearFn decode = nullptr;
  std::vector<TileFn> tile[kTilePanels + 1];  // by panels and M; empty: the reference
  std::optional<AmxLinear> amx;               // of prompt rows
};

LinearKernel::Code::Code(Isa isa, const PackedFormat& format, bool poison)
    : format(format), poisoned(poison ? isa : Isa::kScalar) {
  if (isa == Isa::kScalar) return;
  const bool wide = HasZmm(isa), vnni = isa == Isa::kAvxVnni;
  if (isa == Isa::kAmx) amx.emplace(format);
  name = amx ? "amx_bf16, avx512_vnni" : wide ? "avx512_vnni" : vnni ? "avx_vnni" : "avx2";
  for (const bool cached : {false, true})
    for (int m = 1; m <= (wide ? kFewRowsAvx512 : kFewRowsAvx2); ++m) {
      const LinearSpec spec{&format, m, cached};
      rows[cached].push_back(Keep<LinearFn>(wide ? MakeLinearAvx512(spec) : MakeLinearAvx2(spec, vnni)));
    }
  decode = Keep<LinearFn>(wide ? MakeDecodeAvx512(format) : MakeDecodeAvx2(format));
  for (int panels = 1; panels <= kTilePanels; ++panels) {
    tile[panels] = {nullptr};
    for (int m = 1; m <= (wide ? kTileRowsAvx512 : kTileRowsAvx2); ++m) {
      const TileSpec spec{&format, m, panels};
      tile[panels].push_back(Keep<TileFn>(wide ? MakeTileAvx512(spec) : MakeTileAvx2(spec, vnni)));
    }
  }
}

void LinearKernel::Code::RunRows(const LinearArgs& args, int64_t m) const {
  const int64_t most = std::max<int64_t>(1, std::ssize(rows[0]) - 1),
                panel_bytes = args.n_blocks * format.block_bytes();
  const int64_t step = m <= most ? args.n_panels : std::max<int64_t>(1, kPassBytes / panel_bytes);
  for (int64_t panel = 0; panel < args.n_panels; panel += step) {
    LinearArgs part = args;
    part.panel += panel * panel_bytes;
    part.y += panel * kPanelRows;
    part.n_panels = std::min(step, args.n_panels - panel);
    InParts(part, m, most, [&](const LinearArgs& pass, int64_t now) {
      if (rows[0].size() == 1)
        LinearReference(format, pass);
      else
        rows[pass.x != args.x][now](&pass);
    });
  }
}

void LinearKernel::Code::RunTiles(const LinearArgs& args, int64_t m) const {
  const int64_t step = kTileK / format.block_k();
  if (m < kRowsOutgrowL2) {
    for (int64_t panel = 0; panel < args.n_panels; panel += kTilePanels)
      for (int64_t block = 0; block < args.n_blocks; block += step) RunKBlock(args, m, panel, block);
  } else {
    for (int64_t block = 0; block < args.n_blocks; block += step)
      for (int64_t panel = 0; panel < args.n_panels; panel += kTilePanels) RunKBlock(args, m, panel, block);
  }
}

void LinearKernel::Code::RunKBlock(const LinearArgs& args, int64_t m, int64_t panel, int64_t first_block) const {
  alignas(64) uint8_t decoded[kTilePanels * kMaxDecodedPanelBytes];
  const int panels = static_cast<int>(std::min<int64_t>(kTilePanels, args.n_panels - panel));
  const int64_t n_blocks = std::min<int64_t>(kTileK / format.block_k(), args.n_blocks - first_block);
  for (int p = 0; p < panels; ++p) {
    LinearArgs part{};
    part.panel = args.panel + ((panel + p) * args.n_blocks + first_block) * format.block_bytes();
    part.y = reinterpret_cast<float*>(decoded + p * DecodedPanelBytes(format));
    part.n_panels = 1;
    part.n_blocks = n_blocks;
    decode(&part);
  }
  const int64_t first_k = first_block * format.block_k();
  RunTile({decoded, args.x + ActivationOffset(first_k, 0), args.x_stride_bytes, args.y + panel * kPanelRows,
           args.y_stride_bytes, n_blocks * format.block_k() / (2 * kChunk), 0, args.accumulate || first_block > 0},
          m, panels);
}

void LinearKernel::Code::RunTile(TileArgs args, int64_t m, int panels) const {
  const int64_t most = std::ssize(tile[panels]) - 1, n_tiles = (m + most - 1) / most, rows = m / n_tiles;
  args.n_tiles = m % n_tiles;
  if (args.n_tiles > 0) {
    tile[panels][rows + 1](&args);
    const int64_t done = args.n_tiles * (rows + 1);
    args.x += done * args.x_stride_bytes;
    args.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(args.y) + done * args.y_stride_bytes);
  }
  args.n_tiles = n_tiles - args.n_tiles;
  tile[panels][rows](&args);
}

LinearKernel::LinearKernel(Isa isa, const PackedFormat& format, bool poison)
    : code_(std::make_unique<Code>(isa, format, poison)) {}
LinearKernel::~LinearKernel() = default;
LinearKernel::LinearKernel(LinearKernel&&) noexcept = default;

std::string_view LinearKernel::name() const { return code_->name; }

void LinearKernel::Run(const LinearArgs& args, int64_t m, PromptForm form) const {
  if (form == PromptForm::kBf16)
    code_->amx->Run(args, m);
  else if (m <= kFewRows || code_->tile[1].empty())
    code_->RunRows(args, m);
  else
    InParts(args, m, args.n_blocks * code_->format.block_k() < kManyK ? m : kTileRowsTogether,
            [&](const LinearArgs& part, int64_t now) { code_->RunTiles(part, now); });
}

}  // namespace thermocline
