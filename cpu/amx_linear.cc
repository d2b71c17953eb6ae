#include "cpu/amx_linear.h"

#include <algorithm>

#include "cpu/bf16_tiles.h"

namespace thermocline {
namespace {

// k of which weights stand in tiles at once: two panels take 64 KB, and 512 rows of x 1 MB, of 2 MB of L2.
constexpr int64_t kBlockK = 2 * kTileK;
constexpr int64_t kTileBytes = kBlockK / kAmxStepK * kAmxPanels * kAmxWeightBytes;
constexpr int64_t kTileRows = kAmxHalves * kAmxHalfRows;

float* Below(float* y, int64_t bytes) { return reinterpret_cast<float*>(reinterpret_cast<uint8_t*>(y) + bytes); }

}  // namespace

AmxLinear::AmxLinear(const PackedFormat& format) : format_(format) {
  std::unique_ptr<JitCode> decode = MakeDecodeAvx512(format);
  decode_ = decode->Finish<LinearFn>();
  jit_.push_back(std::move(decode));
  for (int halves = 1; halves <= kAmxHalves; ++halves)
    for (int panels = 1; panels <= kAmxPanels; ++panels) {
      jit_.push_back(MakeTileAmx(halves, panels));
      tile_[halves - 1][panels - 1] = jit_.back()->getCode<AmxTileFn>();
    }
}

void AmxLinear::Run(const LinearArgs& args, int64_t m) const {
  alignas(64) uint8_t tiles[kTileBytes];
  const int64_t step = kBlockK / format_.block_k();
  for (int64_t block = 0; block < args.n_blocks; block += step)
    for (int64_t panel = 0; panel < args.n_panels; panel += kAmxPanels) {
      const int panels = static_cast<int>(std::min<int64_t>(kAmxPanels, args.n_panels - panel));
      const int64_t n_blocks = std::min(step, args.n_blocks - block);
      Decode(args, panel, panels, block, n_blocks, tiles);
      AmxTileArgs tile{};
      tile.weights = tiles;
      tile.x = args.x + PromptOffset(PromptForm::kBf16, block * format_.block_k());
      tile.x_stride_bytes = args.x_stride_bytes;
      tile.y = args.y + panel * kPanelRows;
      tile.y_stride_bytes = args.y_stride_bytes;
      tile.n_steps = n_blocks * format_.block_k() / kAmxStepK;
      tile.accumulate = args.accumulate || block > 0;
      RunTiles(tile, m, panels);
    }
}

void AmxLinear::Decode(const LinearArgs& args, int64_t panel, int panels, int64_t first_block, int64_t n_blocks,
                       uint8_t* tiles) const {
  alignas(64) uint8_t decoded[kMaxDecodedPanelBytes];
  const DecodedChunks chunks{decoded, DecodedChunkBytes(format_), GroupsPerChunk(format_), format_.has_min,
                             static_cast<float>(format_.zero_point)};
  const int64_t step_bytes = panels * kAmxWeightBytes, part_blocks = kTileK / format_.block_k();
  for (int64_t block = 0; block < n_blocks; block += part_blocks)
    for (int p = 0; p < panels; ++p) {
      LinearArgs part{};
      part.panel = args.panel + ((panel + p) * args.n_blocks + first_block + block) * format_.block_bytes();
      part.y = reinterpret_cast<float*>(decoded);
      part.n_panels = 1;
      part.n_blocks = std::min(part_blocks, n_blocks - block);
      decode_(&part);
      ChunksToBf16(chunks, part.n_blocks * format_.block_k() / kChunk,
                   tiles + block * format_.block_k() / kAmxStepK * step_bytes + p * kAmxWeightBytes, step_bytes);
    }
}

void AmxLinear::RunTiles(AmxTileArgs args, int64_t m, int panels) const {
  args.n_tiles = m / kTileRows;
  if (args.n_tiles > 0) {
    args.config = AmxConfigFor(kTileRows);
    tile_[kAmxHalves - 1][panels - 1](&args);
    args.x += args.n_tiles * kTileRows * args.x_stride_bytes;
    args.y = Below(args.y, args.n_tiles * kTileRows * args.y_stride_bytes);
  }
  const int64_t rest = m % kTileRows;
  if (rest == 0) return;
  args.n_tiles = 1;
  args.config = AmxConfigFor(rest);
  tile_[(rest - 1) / kAmxHalfRows][panels - 1](&args);
}

void RoundToBf16(const float* x, int64_t k, uint8_t* out) {
  FloatsToBf16(x, k, ActivationGroups(k) * kActivationGroup, out);
}

}  // namespace thermocline
