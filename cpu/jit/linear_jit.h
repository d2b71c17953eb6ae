// What the packed product's generators of all instruction sets share. Three kinds of code per format:
//
//   few rows   walks the packed panels, unpacks a chunk of 32 k into registers, uses it for all M rows of x
//   decode     unpacks one K block of one panel into a buffer, in the layout below
//   tile       the register tile over one or two decoded panels, for as many tiles of M rows as there are
//
// A decoded panel is, for each chunk: 8 lines of codes (line q = quad q of 16 rows, as in cpu/packed.h), then per group
// a line of 16 float scales, then, for types with a min, per group a line of 16 float mins.
#pragma once

#include <xbyak/xbyak.h>

#include <bit>
#include <cstddef>

#include "cpu/activations.h"
#include "cpu/linear.h"

namespace thermocline {

// k of a decoded block, 512: a pair of panels stays in an L1 of 32 KiB.
inline constexpr int kTileK = kMaskGroups * kActivationGroup;

constexpr int GroupsPerChunk(const PackedFormat& format) { return kChunk / format.group; }
constexpr int DecodedChunkBytes(const PackedFormat& format) {
  return 512 + 64 * GroupsPerChunk(format) * (format.has_min ? 2 : 1);
}
constexpr int DecodedPanelBytes(const PackedFormat& format) { return kTileK / kChunk * DecodedChunkBytes(format); }
inline constexpr int kMaxDecodedPanelBytes = kTileK / kChunk * (512 + 64 * 2 * 2);

// Few rows, and decode (which reads `panel` and `n_blocks` and writes to `y`, 64-byte aligned).
using LinearFn = void (*)(const LinearArgs*);

struct LinearSpec {  // baked into the code
  const PackedFormat* format;
  int m;                // rows of x
  bool cached = false;  // the weights are in L2 already: nothing is fetched ahead
};

struct TileArgs {
  const uint8_t* panels;  // decoded, DecodedPanelBytes apart
  const uint8_t* x;       // row 0's first line in this K block
  int64_t x_stride_bytes;
  float* y;
  int64_t y_stride_bytes;
  int64_t n_pairs;  // of chunks in this K block
  int64_t n_tiles;  // of M rows, at least 1
  int64_t accumulate;
};
using TileFn = void (*)(const TileArgs*);

struct TileSpec {
  const PackedFormat* format;
  int m;
  int panels;  // 1 or 2
};

// Code that belongs to this process and is never written again after Finish.
class JitCode : public Xbyak::CodeGenerator {
 public:
  virtual ~JitCode() = default;
  // Emits the code and makes it executable and read-only. For tests, registers of `poisoned` hold NaN when it begins.
  template <typename Fn>
  Fn Finish(Isa poisoned = Isa::kScalar) {
    Poison(poisoned);
    Generate();
    setProtectModeRE();
    return getCode<Fn>();
  }

 protected:
  explicit JitCode(const PackedFormat& format)
      : CodeGenerator(kMaxCodeBytes, Xbyak::DontSetProtectRWE), format_(format) {}
  virtual void Generate() = 0;

  const PackedFormat& format() const { return format_; }
  int groups_per_chunk() const { return GroupsPerChunk(format_); }
  // Where the sum of the group's activations stands in a meta.
  int SumOffset(int group) const {
    return format_.group == 32 ? offsetof(ActivationMeta, sum32)
                               : offsetof(ActivationMeta, sum16) + static_cast<int>(sizeof(float)) * group;
  }
  int CorrectionOffset(int group) const {
    return format_.group == 32 ? offsetof(ActivationMeta, correction32)
                               : offsetof(ActivationMeta, correction16) + static_cast<int>(sizeof(int32_t)) * group;
  }
  // The corrections are for a zero point of 8: others are shifted by this, left where it is positive. Right is exact.
  int CorrectionShift() const { return std::countr_zero(static_cast<unsigned>(format_.zero_point)) - 3; }
  // Within a pair of chunks and the lines of x that belong to it.
  static int MetaOffset(int chunk) { return static_cast<int>(ActivationMetaOffset(chunk)); }
  static int QuadOffset(int chunk, int plane, int quad) {
    return static_cast<int>(ActivationOffset(kChunk * chunk + 4 * quad, plane));
  }
  // A register for each row of x, as an address with an index costs a micro-op more.
  static constexpr int kMaxRows = 6;
  static Xbyak::Reg64 RowReg(int m);
  // Room on the stack from rsp on, aligned to 64 bytes. Uses rax.
  void EnterFrame(int bytes);
  void LeaveFrame(int bytes);

 private:
  void Poison(Isa isa);
  static constexpr size_t kMaxCodeBytes = 32 * 1024;
  const PackedFormat& format_;
};

// The loops over panels and blocks, and the addresses in packed panels; a subclass emits what is done with a chunk.
//
//   for each panel:                       rows [0, 16), or twice 8 rows where a vector holds 8
//     BeginPanel
//     for each block:                     BeginBlock
//       for each pair of chunks:          Chunk(0), Chunk(1), EndPair
//     EndPanel
class PanelJit : public JitCode {
 protected:
  // `passes`: how many times a panel is walked, 16 / passes rows each.
  PanelJit(const LinearSpec& spec, int passes, int frame_bytes = 0)
      : JitCode(*spec.format), spec_(spec), passes_(passes), frame_bytes_(frame_bytes) {}

  virtual void Constants() {}  // loads what stays in registers for the whole call
  virtual void BeginPanel() {}
  virtual void BeginBlock() {}        // K types: super-block scales from [super_scales()]
  virtual void Chunk(int chunk) = 0;  // 0 or 1 of a pair, which all the addresses below stand on
  virtual void EndPair() {}
  virtual void EndPanel() {}
  virtual void Data() {}  // constants behind the code

  Xbyak::RegExp codes(int chunk, int offset) const { return w_ + (chunk * format().chunk_bytes() + offset); }
  Xbyak::RegExp scales(int offset) const;                                   // of the pair
  Xbyak::RegExp super_scales(int offset) const { return super_ + offset; }  // K types: 16 F16 d, then dmin
  Xbyak::RegExp x(int m, int offset) const { return RowReg(m) + offset; }

  Xbyak::RegExp frame(int offset) const { return rsp + offset; }

  int m() const { return spec_.m; }
  bool cached() const { return spec_.cached; }
  int pass() const { return pass_; }  // being emitted now
  int rows_per_pass() const { return kPanelRows / passes_; }
  const Xbyak::Reg64& y() const { return y_; }
  // Runs emit(m) for each row with y_row() standing on it.
  template <typename Emit>
  void ForEachOutputRow(const Emit& emit) {
    mov(y_row_, y_);
    for (int i = 0; i < m(); ++i) {
      emit(i);
      if (i + 1 < m()) add(y_row_, ptr[args_ + offsetof(LinearArgs, y_stride_bytes)]);
    }
  }
  Xbyak::RegExp y_row(int offset) const { return y_row_ + offset; }
  Xbyak::Address accumulate() const { return qword[args_ + offsetof(LinearArgs, accumulate)]; }

 private:
  void Generate() override;
  void Panel();
  void Pair();
  void BlockOfSuperScales();

  LinearSpec spec_;
  int passes_, frame_bytes_, pass_ = 0;
  // RowReg(0..5) are rdx, rcx, r8..r11. Rows of y are gone through outside the loop over pairs.
  const Xbyak::Reg64 args_ = rdi, w_ = rsi;
  const Xbyak::Reg64 n_blocks_ = rax, y_ = rbx, n_panels_ = rbp, panel_ = r12;
  const Xbyak::Reg64 n_pairs_ = r13, y_row_ = r13, scales_ = r14, super_ = r15;
};

// AVX2, with AVX-VNNI where `vnni` says so.
std::unique_ptr<JitCode> MakeLinearAvx2(const LinearSpec& spec, bool vnni);  // M 1 .. kFewRowsAvx2
std::unique_ptr<JitCode> MakeDecodeAvx2(const PackedFormat& format);
std::unique_ptr<JitCode> MakeTileAvx2(const TileSpec& spec, bool vnni);  // M 1 .. kTileRowsAvx2
inline constexpr int kFewRowsAvx2 = 4, kTileRowsAvx2 = 3;

std::unique_ptr<JitCode> MakeLinearAvx512(const LinearSpec& spec);  // M 1 .. kFewRowsAvx512
inline constexpr int kFewRowsAvx512 = 6;
std::unique_ptr<JitCode> MakeDecodeAvx512(const PackedFormat& format);
// The same in BF16, for cpu/jit/tile_amx.h: 32 k of a panel are kAmxTileBytes, kAmxStepBytes apart. Needs AVX-512
// BF16.
std::unique_ptr<JitCode> MakeDecodeBf16Avx512(const PackedFormat& format);
std::unique_ptr<JitCode> MakeTileAvx512(const TileSpec& spec);  // M 1 .. kTileRowsAvx512
inline constexpr int kTileRowsAvx512 = 6;

}  // namespace thermocline
