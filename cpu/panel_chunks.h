// How the panels of a product are dealt to the members of a team.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/activations.h"

namespace thermocline {

// A chunk claimed at once reads at least this much, and there are at least kChunksPerMember for balance.
inline constexpr int64_t kMinChunkBytes = 16 * 1024, kChunksPerMember = 16;
// With more rows than few, this many panels share each pass over the activations.
inline constexpr int64_t kFewChunkRows = 8, kMaxChunkPanels = 8;
// Tiles of BF16 are done with a panel so soon that reading the rows for each chunk shows: larger ones, of which sums
// stay in L2 beside the rows. Prompts of the 1.1B and 7B shapes: 428 and 67 tokens/s with 16, 403 and 70 with 8, 389
// and 62 with 32 (2 Xeon cores, medians of 8 and 2 runs).
inline constexpr int64_t kMaxChunkPanelsBf16 = 16, kChunksPerMemberBf16 = 4;
// A prompt's rows are dealt to members as its stages over rows are, in blocks of so many at least, for which decoding
// the weights once more is 2 % of a product: lines that another core wrote last cost more. Decoding to BF16 costs too
// much for that.
inline constexpr int64_t kMinRowsOfMember = 128;

struct PanelChunks {
  int64_t n_panels;  // of all projections, one behind the other
  int64_t grain;     // panels of a chunk
  int64_t n_blocks;  // of rows
  int64_t n_chunks;  // of each block
};

// Of n_panels that take so many bytes, by n_rows rows, of which those of prompts stand in `form`.
inline PanelChunks MakePanelChunks(int64_t n_panels, int64_t bytes, int64_t n_rows, PromptForm form, int n_members) {
  const bool tiles = n_rows > kFewChunkRows && form == PromptForm::kBf16;
  const int64_t for_bytes = std::max<int64_t>(1, kMinChunkBytes * n_panels / bytes / std::max<int64_t>(1, n_rows));
  int64_t grain = std::max(for_bytes, n_panels / ((tiles ? kChunksPerMemberBf16 : kChunksPerMember) * n_members));
  if (n_rows > kFewChunkRows) grain = std::min(grain, tiles ? kMaxChunkPanelsBf16 : kMaxChunkPanels);
  const int64_t n_blocks = tiles ? 1 : std::clamp<int64_t>(n_rows / kMinRowsOfMember, 1, n_members);
  return {n_panels, grain, n_blocks, n_rows == 0 ? 0 : (n_panels + grain - 1) / grain};
}

}  // namespace thermocline
