// The register tile with AVX2 or AVX-VNNI: M <= 3 rows of x times the 16 output rows of a decoded panel, two ymm each;
// of two panels one after the other, while the rows of x are in L1.
//
//   ymm0..5     sums, 3 rows x 2 halves
//   ymm6..11    dots of the group at hand, likewise (16 or 32 bits, see cpu/jit/dot_avx2.h)
//   ymm12, 13   a line of codes
//   ymm14       4 values of a row of x, in every lane
//   ymm15       scratch
//
// Bounds, per group of 32, row and 8 output rows, one plane / both (+1 with mins, for zero points +1 on AVX2):
//   AVX2, 4 bits   8 vpmaddubsw, 7 vpaddw, vpmaddwd, conversion, product, fma: 19 micro-ops on 3 ports / 36
//   AVX-VNNI       8 vpdpbusd, shift, conversion, product, fma: 12 on 2 ports / 20
// A step of 3 x 2 registers is 17 micro-ops, 5 of them loads, in 4 (AVX2) or 3 cycles: 6 rows would load less, but have
// more groups in which one of them has a lo plane. Groups in which none has it take a path of their own, to the same
// bits.
//
// While a tile is computed the lines of the next one are fetched, as in tile_avx512.cc: on a Zen 3 that is 5 to 9 % of
// a prompt's product. There the steps above take 54 cycles per 3 rows, 2 halves and 32 k, with all of it in L1; ports
// alone would allow 37.
#include "cpu/jit/dot_avx2.h"

namespace thermocline {
namespace {

using Xbyak::Ymm;

class TileAvx2 final : public JitCode {
 public:
  TileAvx2(const TileSpec& spec, bool vnni) : JitCode(*spec.format), spec_(spec), step_(StepFor(*spec.format, vnni)) {}

 private:
  static constexpr int kHalves = 2;
  static Ymm Sum(int i, int h) { return Ymm(kHalves * i + h); }
  static Ymm Dot(int i, int h) { return Ymm(6 + kHalves * i + h); }
  static Ymm Codes(int h) { return Ymm(12 + h); }
  const Ymm x_quad_ = ymm14, temp_ = ymm15;
  // RowReg(0..2) are rdx, rcx, r8.
  const Xbyak::Reg64 args_ = rdi, w_ = rsi, n_pairs_ = rax, y_row_ = r9, panel_ = r10;
  const Xbyak::Reg64 y_ = rbx, n_tiles_ = rbp, x_ = r12, n_panels_ = r13;
  const Xbyak::Reg64 tile_stride_ = r14;  // bytes of x from a tile to the next
  const Xbyak::Reg32 lo_groups_ = r11d;
  Xbyak::Label ones_data_, times_256_data_, low_bytes_data_, high_bytes_data_;

  // In the frame: 32-bit dots of groups with several flushes; kWords: the rows' K block, its planes made words.
  static constexpr int kWideAt = 0, kWordsAt = 32 * kHalves * kTileRowsAvx2;
  static constexpr int kWordRowBytes = kTileK / (2 * kChunk) * kActivationPairBytes;
  int FrameBytes() const { return kWordsAt + (step_ == DotStep::kWords ? spec_.m * kWordRowBytes : 0); }
  Xbyak::Address Wide(int i, int h) const { return ptr[rsp + (kWideAt + 32 * (kHalves * i + h))]; }

  Xbyak::RegExp X(int i, int offset) const { return RowReg(i) + offset; }
  Xbyak::Address Meta(int i, int chunk, size_t offset) const {
    return ptr[X(i, MetaOffset(chunk) + static_cast<int>(offset))];
  }

  template <typename Emit>
  void ForEach(const Emit& emit) {
    for (int i = 0; i < spec_.m; ++i)
      for (int h = 0; h < kHalves; ++h) emit(i, h);
  }

  void Generate() override {
    const Xbyak::Reg64 saved[] = {rbx, rbp, r12, r13, r14};
    for (const auto& reg : saved) push(reg);
    EnterFrame(FrameBytes());
    mov(x_, ptr[args_ + offsetof(TileArgs, x)]);
    mov(y_, ptr[args_ + offsetof(TileArgs, y)]);
    mov(n_tiles_, ptr[args_ + offsetof(TileArgs, n_tiles)]);
    imul(tile_stride_, ptr[args_ + offsetof(TileArgs, x_stride_bytes)], spec_.m);
    Xbyak::Label next_tile;
    L(next_tile);
    Tile();
    dec(n_tiles_);
    jnz(next_tile, T_NEAR);
    vzeroupper();
    LeaveFrame(FrameBytes());
    for (int i = 4; i >= 0; --i) pop(saved[i]);
    ret();
    const auto fill = [&](Xbyak::Label& label, uint32_t value) {
      align(32);
      L(label);
      for (int i = 0; i < 8; ++i) dd(value);
    };
    fill(ones_data_, 0x00010001);
    fill(times_256_data_, 0x01000100);
    fill(low_bytes_data_, 0x00ff00ff);
    fill(high_bytes_data_, 0xff00ff00);
  }

  // Leaves x_ and y_ on the next tile.
  void Tile() {
    if (step_ == DotStep::kWords) RowsOfWords();
    mov(panel_, ptr[args_ + offsetof(TileArgs, panels)]);
    mov(n_panels_, spec_.panels);
    Xbyak::Label next_panel;
    L(next_panel);
    PanelOfTile();
    add(panel_, DecodedPanelBytes(format()));
    add(y_, kPanelRows * sizeof(float));
    dec(n_panels_);
    jnz(next_panel, T_NEAR);
    sub(y_, spec_.panels * kPanelRows * static_cast<int>(sizeof(float)));
    for (int i = 0; i < spec_.m; ++i) {
      add(x_, ptr[args_ + offsetof(TileArgs, x_stride_bytes)]);
      add(y_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    }
  }

  // The K block of each row into the frame, as words.
  void RowsOfWords() {
    const auto &from = w_, &to = panel_, &row = y_row_;
    mov(row, x_);
    lea(to, ptr[rsp + kWordsAt]);
    for (int i = 0; i < spec_.m; ++i) {
      mov(from, row);
      mov(n_pairs_, ptr[args_ + offsetof(TileArgs, n_pairs)]);
      Xbyak::Label next_pair;
      L(next_pair);
      for (int at = 0; at < 64; at += kChunk)
        EmitWordsOfX(*this, from + at, to + at, to + 64 + at, ptr[rip + high_bytes_data_]);
      for (int at = 128; at < kActivationPairBytes; at += 32) {
        vmovdqa(temp_, ptr[from + at]);
        vmovdqa(ptr[to + at], temp_);
      }
      add(from, kActivationPairBytes);
      add(to, kActivationPairBytes);
      dec(n_pairs_);
      jnz(next_pair, T_NEAR);
      if (i + 1 == spec_.m) break;
      add(row, ptr[args_ + offsetof(TileArgs, x_stride_bytes)]);
      lea(to, ptr[rsp + (kWordsAt + (i + 1) * kWordRowBytes)]);
    }
  }

  void PanelOfTile() {
    LoadSums();
    mov(w_, panel_);
    mov(n_pairs_, ptr[args_ + offsetof(TileArgs, n_pairs)]);
    for (int i = 0; i < spec_.m; ++i) {
      if (step_ == DotStep::kWords) {
        lea(RowReg(i), ptr[rsp + (kWordsAt + i * kWordRowBytes)]);
        continue;
      }
      mov(RowReg(i), i == 0 ? x_ : RowReg(i - 1));
      if (i > 0) add(RowReg(i), ptr[args_ + offsetof(TileArgs, x_stride_bytes)]);
    }
    for (int i = 0; i < spec_.m; ++i) {
      const auto mask = Meta(i, 0, offsetof(ActivationMeta, lo_groups));
      if (i == 0)
        mov(lo_groups_, mask);
      else
        or_(lo_groups_, mask);
    }
    PrefetchY();
    Xbyak::Label next_pair;
    align(32);
    L(next_pair);
    PrefetchX(kActivationHiLine);
    PrefetchX(kActivationMetaLine);
    for (int chunk = 0; chunk < 2; ++chunk) Chunk(chunk);
    shr(lo_groups_, 2);
    add(w_, 2 * DecodedChunkBytes(format()));
    for (int i = 0; i < spec_.m; ++i) add(RowReg(i), kActivationPairBytes);
    dec(n_pairs_);
    jnz(next_pair, T_NEAR);
    ForEachOutput([&](int i, int h) { vmovups(ptr[y_row_ + 32 * h], Sum(i, h)); });
  }

  template <typename Emit>
  void ForEachOutput(const Emit& emit) {
    mov(y_row_, y_);
    for (int i = 0; i < spec_.m; ++i) {
      for (int h = 0; h < kHalves; ++h) emit(i, h);
      if (i + 1 < spec_.m) add(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    }
  }

  void LoadSums() {
    Xbyak::Label done;
    ForEach([&](int i, int h) { vxorps(Sum(i, h), Sum(i, h), Sum(i, h)); });
    cmp(qword[args_ + offsetof(TileArgs, accumulate)], 0);
    je(done, T_NEAR);
    ForEachOutput([&](int i, int h) { vmovups(Sum(i, h), ptr[y_row_ + 32 * h]); });
    L(done);
  }

  // The next tile's lines of y.
  void PrefetchY() {
    mov(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    imul(y_row_, y_row_, spec_.m);
    add(y_row_, y_);
    for (int i = 0; i < spec_.m; ++i) {
      prefetcht0(ptr[y_row_]);
      if (i + 1 < spec_.m) add(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    }
  }

  // One line of the pair at hand of each row of the next tile; past the last tile that does no harm.
  void PrefetchX(int line) {
    if (step_ == DotStep::kWords) return;
    for (int i = 0; i < spec_.m; ++i) prefetcht0(ptr[X(i, 64 * line) + tile_stride_]);
  }

  void Chunk(int chunk) {
    if (step_ == DotStep::kWords) return Groups(chunk, 2);
    Xbyak::Label both, done;
    test(lo_groups_, 1 << chunk);
    jnz(both, T_NEAR);
    Groups(chunk, 1);
    jmp(done, T_NEAR);
    L(both);
    Groups(chunk, 2);
    L(done);
  }

  void Groups(int chunk, int planes) {
    for (int group = 0; group < groups_per_chunk(); ++group) {
      if (step_ == DotStep::kVnni) ForEach([&](int i, int h) { vpxor(Dot(i, h), Dot(i, h), Dot(i, h)); });
      for (int plane = 0; plane < planes; ++plane) Dots(chunk, group, plane, planes);
      for (int i = 0; i < spec_.m; ++i) AddToSums(i, chunk, group);
    }
  }

  // Adds a plane's part to the dots, which all stand in units of lo when the last one is done.
  void Dots(int chunk, int group, int plane, int planes) {
    const bool words = step_ == DotStep::kWords, narrow = step_ == DotStep::kMaddubs;
    const int quads = 8 / groups_per_chunk(), per_flush = narrow ? QuadsPerFlush(format()) : quads;
    for (int j = 0; j < quads; ++j) {
      const int q = group * quads + j;
      for (int h = 0; h < kHalves; ++h) {
        vmovdqa(Codes(h), ptr[w_ + (chunk * DecodedChunkBytes(format()) + 64 * q + 32 * h)]);
        if (words) EmitWordsOfCodes(*this, Codes(h), plane == 1, ptr[rip + low_bytes_data_]);
      }
      for (int i = 0; i < spec_.m; ++i) {
        vpbroadcastd(x_quad_, ptr[X(i, QuadOffset(chunk, plane, q))]);
        const bool first = j % per_flush == 0 && !(words && plane == 1);
        for (int h = 0; h < kHalves; ++h) EmitStep(*this, step_, Dot(i, h), Codes(h), x_quad_, temp_, first);
      }
      if (narrow && (j % per_flush == per_flush - 1 || j + 1 == quads))
        Flush(plane, plane == 0 && j < per_flush, plane + 1 == planes && j + 1 == quads);
    }
    if (step_ == DotStep::kVnni && plane == 0) ForEach([&](int i, int h) { vpslld(Dot(i, h), Dot(i, h), 8); });
  }

  // 16-bit sums into 32 bits, where those of several flushes meet in the frame.
  void Flush(int plane, bool first, bool last) {
    ForEach([&](int i, int h) {
      vpmaddwd(Dot(i, h), Dot(i, h), plane == 0 ? ptr[rip + times_256_data_] : ptr[rip + ones_data_]);
      if (!first) vpaddd(Dot(i, h), Dot(i, h), Wide(i, h));
      if (!last) vmovdqa(Wide(i, h), Dot(i, h));
    });
  }

  void AddToSums(int i, int chunk, int group) {
    const auto scales = [&](int line, int h) {
      return ptr[w_ + (chunk * DecodedChunkBytes(format()) + 512 + 64 * line + 32 * h)];
    };
    if (!format().has_min) {
      vpbroadcastd(temp_, Meta(i, chunk, CorrectionOffset(group)));
      if (CorrectionShift() > 0) vpslld(temp_, temp_, CorrectionShift());
      if (CorrectionShift() < 0) vpsrad(temp_, temp_, -CorrectionShift());
      for (int h = 0; h < kHalves; ++h) vpaddd(Dot(i, h), Dot(i, h), temp_);
    }
    vbroadcastss(x_quad_, Meta(i, chunk, offsetof(ActivationMeta, scale)));
    if (format().has_min) vbroadcastss(temp_, Meta(i, chunk, SumOffset(group)));
    for (int h = 0; h < kHalves; ++h) {
      vcvtdq2ps(Dot(i, h), Dot(i, h));
      vmulps(Dot(i, h), Dot(i, h), x_quad_);
      vfmadd231ps(Sum(i, h), Dot(i, h), scales(group, h));
      if (format().has_min) vfmadd231ps(Sum(i, h), temp_, scales(groups_per_chunk() + group, h));
    }
  }

  TileSpec spec_;
  const DotStep step_;
};

}  // namespace

std::unique_ptr<JitCode> MakeTileAvx2(const TileSpec& spec, bool vnni) {
  return std::make_unique<TileAvx2>(spec, vnni);
}

}  // namespace thermocline
