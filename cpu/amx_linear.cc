#include "cpu/amx_linear.h"

#include <algorithm>

#include "cpu/bf16_tiles.h"

namespace thermocline {
namespace {

// k of which weights stand in tiles at once, so that sums are loaded and stored seldom: two panels take 64 KB, the next
// two, which are decoded beside, as much, what 512 rows of x have of it 1 MB; all of that is in 2 MB of L2.
constexpr int64_t kBlockK = 1024;
constexpr int64_t kTileBytes = kBlockK / kAmxStepK * kAmxStepBytes;
constexpr int64_t kTileRows = kAmxHalves * kAmxHalfRows;

}  // namespace

AmxLinear::AmxLinear(const PackedFormat& format)
    : format_(format), decode_code_(MakeDecodeBf16Avx512(format)), decode_(decode_code_->Finish<LinearFn>()) {
  for (int halves = 1; halves <= kAmxHalves; ++halves)
    for (int panels = 1; panels <= kAmxPanels; ++panels) {
      tile_code_.push_back(MakeTileAmx(halves, panels));
      tile_[halves - 1][panels - 1] = tile_code_.back()->getCode<AmxTileFn>();
    }
}

// While the tiles of one unit are multiplied, which leaves the vector units idle, the next unit is decoded: a few
// blocks behind each tile, so that the instructions in flight are the end of one and the begin of the other.
void AmxLinear::Run(const LinearArgs& args, int64_t m) const {
  alignas(64) uint8_t tiles[2][kTileBytes];
  const int64_t step = kBlockK / format_.block_k();
  const int64_t n_pairs = (args.n_panels + kAmxPanels - 1) / kAmxPanels;
  const int64_t n_units = n_pairs * ((args.n_blocks + step - 1) / step);
  const auto unit_at = [&](int64_t i) {
    const int64_t panel = i % n_pairs * kAmxPanels, block = i / n_pairs * step;
    return Unit{panel, std::min<int64_t>(kAmxPanels, args.n_panels - panel), block,
                std::min(step, args.n_blocks - block)};
  };
  const int64_t n_tiles = (m + kTileRows - 1) / kTileRows;
  int64_t configured = 0;
  Unit unit = unit_at(0);
  Decode(args, unit, 0, unit.n_panels * unit.n_blocks, tiles[0]);
  for (int64_t i = 0; i < n_units; ++i) {
    const Unit next = i + 1 < n_units ? unit_at(i + 1) : Unit{};
    const int64_t n_parts = next.n_panels * next.n_blocks;
    for (int64_t t = 0; t < n_tiles; ++t) {
      const int64_t rows = std::min(kTileRows, m - t * kTileRows);
      if (rows != configured) LoadAmxConfig(AmxConfigFor(rows));
      configured = rows;
      RunTile(args, unit, tiles[i % 2], t * kTileRows, rows);
      Decode(args, next, n_parts * t / n_tiles, n_parts * (t + 1) / n_tiles, tiles[(i + 1) % 2]);
    }
    unit = next;
  }
  ReleaseAmx();
}

void AmxLinear::Decode(const LinearArgs& args, const Unit& unit, int64_t begin, int64_t end, uint8_t* tiles) const {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t panel = i % unit.n_panels, block = i / unit.n_panels;
    LinearArgs part{};
    part.panel = args.panel + ((unit.panel + panel) * args.n_blocks + unit.block + block) * format_.block_bytes();
    part.y =
        reinterpret_cast<float*>(tiles + block * format_.block_k() / kAmxStepK * kAmxStepBytes + panel * kAmxTileBytes);
    part.n_panels = part.n_blocks = 1;
    decode_(&part);
  }
}

void AmxLinear::RunTile(const LinearArgs& args, const Unit& unit, const uint8_t* tiles, int64_t first_row,
                        int64_t n_rows) const {
  AmxTileArgs tile{};
  tile.weights = tiles;
  tile.x = args.x + first_row * args.x_stride_bytes + PromptOffset(PromptForm::kBf16, unit.block * format_.block_k());
  tile.x_stride_bytes = args.x_stride_bytes;
  tile.y = reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(args.y) + first_row * args.y_stride_bytes) +
           unit.panel * kPanelRows;
  tile.y_stride_bytes = args.y_stride_bytes;
  tile.n_steps = unit.n_blocks * format_.block_k() / kAmxStepK;
  tile.accumulate = args.accumulate || unit.block > 0;
  tile_[(n_rows - 1) / kAmxHalfRows][unit.n_panels - 1](&tile);
}

void RoundToBf16(const float* x, int64_t k, uint8_t* out) {
  FloatsToBf16(x, k, ActivationGroups(k) * kActivationGroup, out);
}

}  // namespace thermocline
