// y (+)= W x for prompt rows with AMX: weights and activations in BF16, sums in F32.
//
// BF16 needs no planes and has no scale to apply group by group: tiles are summed up over the whole of K, which is what
// AMX is fast at.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/jit/linear_jit.h"
#include "cpu/jit/tile_amx.h"
#include "cpu/linear.h"

namespace thermocline {

class AmxLinear {
 public:
  explicit AmxLinear(const PackedFormat& format);
  // y[m, n] (+)= sum_k bf16(W[n, k]) x[m, k] as cpu/linear.h has it, but for the rows of x, which stand as
  // PromptForm::kBf16. A row is the same bits for any M.
  void Run(const LinearArgs& args, int64_t m) const;

 private:
  // Two panels, or the last one, times some of K.
  struct Unit {
    int64_t panel, n_panels, block, n_blocks;
  };
  // Parts [begin, end) of what is to be decoded of a unit: a block of a panel each.
  void Decode(const LinearArgs& args, const Unit& unit, int64_t begin, int64_t end, uint8_t* tiles) const;
  void RunTile(const LinearArgs& args, const Unit& unit, const uint8_t* tiles, int64_t first_row, int64_t n_rows) const;

  const PackedFormat& format_;
  std::unique_ptr<JitCode> decode_code_;
  LinearFn decode_;
  std::vector<std::unique_ptr<Xbyak::CodeGenerator>> tile_code_;
  // By halves of 16 rows and panels, less one.
  std::array<std::array<AmxTileFn, kAmxPanels>, kAmxHalves> tile_{};
};

}  // namespace thermocline
