// The register tile with AVX-512 VNNI: M rows of x times the 16 or 32 output rows of one or two decoded panels.
//
//   zmm0..11    sums, 6 rows x 2 panels
//   zmm12..23   int32 dots of the group at hand, likewise
//   zmm24, 25   a line of codes of each panel
//   zmm26       4 k of a row of x, in every lane
//   zmm28, 29   scales of each panel's 16 output rows
//   zmm30, 31   mins
//
// Groups in which no row of the tile has a lo plane take a path of their own, to the same bits: their dots are
// multiples of 256, which a scale 256 times as large makes up for. It is bound by the two ports for 512 bits: 8
// vpdpbusd, product and fma per group, row and panel, so 8/10 of the peak of vpdpbusd (8/11 with mins), and one less
// where conversion shares the ports, as on Intel. Both planes go into the same sum, the high one first, shifted by 8
// bits in between: 16/20. Where some rows have the plane, which is what large groups come to, only these multiply by
// it, and take the other scale.
//
// While a tile is computed the lines of the next one are fetched: rows of x come from L2, or from the last level once
// for all panels of a call, and y's lines have been away for the whole K block.
//
// A CPU whose other hyperthread is busy issues 3 micro-ops a cycle, which is little for this: every second row is
// broadcast by vpdpbusd itself (fewer micro-ops), the others into a register (fewer loads).
#include "cpu/jit/linear_jit.h"

namespace thermocline {
namespace {

using Xbyak::Zmm;

class TileAvx512 final : public JitCode {
 public:
  explicit TileAvx512(const TileSpec& spec) : JitCode(*spec.format), spec_(spec) {}

 private:
  static Zmm Sum(int i, int p) { return Zmm(2 * i + p); }
  static Zmm Dot(int i, int p) { return Zmm(12 + 2 * i + p); }
  static Zmm Codes(int p) { return Zmm(24 + p); }
  static Zmm Scale(int p) { return Zmm(28 + p); }
  static Zmm Min(int p) { return Zmm(30 + p); }
  const Zmm x_quad_ = zmm26;
  // RowReg(0..5) are rdx, rcx, r8..r11.
  const Xbyak::Reg64 args_ = rdi, w_ = rsi, y_row_ = r13, next_x_ = r12, y_ = rbx, n_tiles_ = rbp;
  const Xbyak::Reg64 pair_ = rax;         // counts up to zero
  const Xbyak::Reg64 tile_stride_ = r15;  // bytes of x from a tile to the next
  const Xbyak::Reg32 lo_rows_ = r14d;     // of the group at hand: bit i is set if row i has a lo plane
  static constexpr int kMasksEnd = 32;    // on the stack: a byte for each group of the tile, the last one's before it
  Xbyak::Label scale_256_;

  Xbyak::RegExp Panel(int p, int offset) const { return w_ + (p * DecodedPanelBytes(format()) + offset); }
  Xbyak::RegExp PanelScales(int p, int base, int group) const { return Panel(p, base + 512 + 64 * group); }
  Xbyak::RegExp X(int i, int offset) const { return RowReg(i) + offset; }

  template <typename Emit>
  void ForEach(const Emit& emit) {
    for (int i = 0; i < spec_.m; ++i)
      for (int p = 0; p < spec_.panels; ++p) emit(i, p);
  }

  void Generate() override {
    const Xbyak::Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
    for (const auto& reg : saved) push(reg);
    sub(rsp, kMasksEnd + kMaskGroups);
    mov(next_x_, ptr[args_ + offsetof(TileArgs, x)]);
    mov(y_, ptr[args_ + offsetof(TileArgs, y)]);
    mov(n_tiles_, ptr[args_ + offsetof(TileArgs, n_tiles)]);
    imul(tile_stride_, ptr[args_ + offsetof(TileArgs, x_stride_bytes)], spec_.m);
    Xbyak::Label next_tile;
    L(next_tile);
    Tile();
    mov(y_, y_row_);
    dec(n_tiles_);
    jnz(next_tile, T_NEAR);
    vzeroupper();
    add(rsp, kMasksEnd + kMaskGroups);
    for (int i = 5; i >= 0; --i) pop(saved[i]);
    ret();
    align(4);
    L(scale_256_);
    dd(std::bit_cast<uint32_t>(256.f));
  }

  void Tile() {
    LoadSums();
    mov(w_, ptr[args_ + offsetof(TileArgs, panels)]);
    for (int i = 0; i < spec_.m; ++i) {
      mov(RowReg(i), next_x_);
      add(next_x_, ptr[args_ + offsetof(TileArgs, x_stride_bytes)]);
    }
    mov(pair_, ptr[args_ + offsetof(TileArgs, n_pairs)]);
    neg(pair_);
    KeepLoRows();
    PrefetchY();
    Xbyak::Label next_pair;
    align(32);
    L(next_pair);
    PrefetchX(kActivationHiLine);
    PrefetchX(kActivationMetaLine);
    for (int chunk = 0; chunk < 2; ++chunk) Chunk(chunk);
    add(w_, 2 * DecodedChunkBytes(format()));
    for (int i = 0; i < spec_.m; ++i) add(RowReg(i), kActivationPairBytes);
    inc(pair_);
    jnz(next_pair, T_NEAR);
    ForEachOutput([&](int i, int p) { vmovups(ptr[y_row_ + 64 * p], Sum(i, p)); });
  }

  // y_row_ ends behind the last row.
  template <typename Emit>
  void ForEachOutput(const Emit& emit) {
    mov(y_row_, y_);
    for (int i = 0; i < spec_.m; ++i) {
      for (int p = 0; p < spec_.panels; ++p) emit(i, p);
      add(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    }
  }

  void LoadSums() {
    Xbyak::Label zero, done;
    cmp(qword[args_ + offsetof(TileArgs, accumulate)], 0);
    je(zero, T_NEAR);
    ForEachOutput([&](int i, int p) { vmovups(Sum(i, p), ptr[y_row_ + 64 * p]); });
    jmp(done, T_NEAR);
    L(zero);
    ForEach([&](int i, int p) { vpxord(Sum(i, p), Sum(i, p), Sum(i, p)); });
    L(done);
  }

  // Turns the rows' masks of groups into masks of rows, one for each group.
  void KeepLoRows() {
    const Xbyak::Xmm rows = xmm26, row = xmm27, bit = xmm28;
    vpxord(rows, rows, rows);
    for (int i = 0; i < spec_.m; ++i) {
      kmovw(k1, word[X(i, MetaOffset(0) + offsetof(ActivationMeta, lo_groups))]);
      vpmovm2b(row, k1);
      mov(lo_rows_, 1 << i);
      vpbroadcastb(bit, lo_rows_.cvt8());
      vpternlogd(rows, row, bit, 0xf8);  // rows | row & bit
    }
    vmovdqu8(ptr[rsp + pair_ * 2 + kMasksEnd], rows);
  }

  void Chunk(int chunk) {
    const int all = (1 << spec_.m) - 1;
    Xbyak::Label some, both, done;
    movzx(lo_rows_, byte[rsp + pair_ * 2 + kMasksEnd + chunk]);
    test(lo_rows_, lo_rows_);
    jnz(some, T_NEAR);
    for (int group = 0; group < groups_per_chunk(); ++group) Group(chunk, group, Planes::kHi);
    jmp(done, T_NEAR);
    L(some);
    if (chunk == 0) PrefetchX(kActivationLoLine);
    if (spec_.m > 1) {
      cmp(lo_rows_, all);
      je(both, T_NEAR);
      for (int group = 0; group < groups_per_chunk(); ++group) Group(chunk, group, Planes::kLoOfSome);
      jmp(done, T_NEAR);
    }
    L(both);
    for (int group = 0; group < groups_per_chunk(); ++group) Group(chunk, group, Planes::kBoth);
    L(done);
  }

  // The next tile's lines of y.
  void PrefetchY() {
    mov(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    imul(y_row_, y_row_, spec_.m);
    add(y_row_, y_);
    for (int i = 0; i < spec_.m; ++i) {
      for (int p = 0; p < spec_.panels; ++p) prefetchw(ptr[y_row_ + 64 * p]);
      add(y_row_, ptr[args_ + offsetof(TileArgs, y_stride_bytes)]);
    }
  }

  // One line of the pair at hand of each row of the next tile; past the last tile that does no harm.
  void PrefetchX(int line) {
    for (int i = 0; i < spec_.m; ++i) prefetcht0(ptr[X(i, 64 * line) + tile_stride_]);
  }

  enum class Planes { kHi, kLoOfSome, kBoth };

  void Group(int chunk, int group, Planes planes) {
    const int base = chunk * DecodedChunkBytes(format());
    for (int p = 0; p < spec_.panels; ++p) {
      vmovaps(Scale(p), ptr[PanelScales(p, base, group)]);
      if (planes != Planes::kBoth) vmulps(Scale(p), Scale(p), ptr_b[rip + scale_256_]);
      if (format().has_min) vmovaps(Min(p), ptr[Panel(p, base + 512 + 64 * (groups_per_chunk() + group))]);
    }
    BeginDots(chunk, group, planes);
    Dots(chunk, group, 0, 0, spec_.m);
    if (planes == Planes::kBoth) {
      for (int i = 0; i < spec_.m; ++i) Widen(chunk, group, i);
      Dots(chunk, group, 1, 0, spec_.m);
    }
    for (int i = 0; i < spec_.m; ++i) {
      Xbyak::Label without, done;
      if (planes == Planes::kLoOfSome) {
        test(lo_rows_, 1 << i);
        jz(without, T_NEAR);
        WidenFromHigh(chunk, group, i);
        Dots(chunk, group, 1, i, i + 1);
        AddDots(chunk, group, i, [&](int p) { return ptr[PanelScales(p, base, group)]; });
        jmp(done, T_NEAR);
        L(without);
      }
      AddDots(chunk, group, i, [&](int p) { return Scale(p); });
      L(done);
    }
  }

  // Of a row to its sums; scale(p): the operand that has panel p's scales.
  template <typename ScaleOf>
  void AddDots(int chunk, int group, int i, const ScaleOf& scale) {
    for (int p = 0; p < spec_.panels; ++p) vcvtdq2ps(Dot(i, p), Dot(i, p));
    for (int p = 0; p < spec_.panels; ++p)
      vmulps(Dot(i, p), Dot(i, p), ptr_b[X(i, MetaOffset(chunk) + offsetof(ActivationMeta, scale))]);
    for (int p = 0; p < spec_.panels; ++p) vfmadd231ps(Sum(i, p), Dot(i, p), scale(p));
    for (int p = 0; format().has_min && p < spec_.panels; ++p)
      vfmadd231ps(Sum(i, p), Min(p), ptr_b[X(i, MetaOffset(chunk) + SumOffset(group))]);
  }

  void BeginDots(int chunk, int group, Planes planes) {
    for (int i = 0; i < spec_.m; ++i) {
      if (format().has_min || planes == Planes::kBoth)
        vpxord(Dot(i, 0), Dot(i, 0), Dot(i, 0));
      else
        LoadHighCorrection(Dot(i, 0), i, chunk, group);
      for (int p = 1; p < spec_.panels; ++p) vmovdqa64(Dot(i, p), Dot(i, 0));
    }
  }

  // Of rows [begin, end).
  void Dots(int chunk, int group, int plane, int begin, int end) {
    const int quads = 8 / groups_per_chunk(), base = chunk * DecodedChunkBytes(format());
    for (int q = group * quads; q < (group + 1) * quads; ++q) {
      for (int p = 0; p < spec_.panels; ++p) vmovdqa64(Codes(p), ptr[Panel(p, base + 64 * q)]);
      for (int i = begin; i < end; ++i) {
        const Xbyak::RegExp quad = X(i, QuadOffset(chunk, plane, q));
        if (i % 2 == 0) {
          for (int p = 0; p < spec_.panels; ++p) vpdpbusd(Dot(i, p), Codes(p), ptr_b[quad]);
          continue;
        }
        vpbroadcastd(x_quad_, ptr[quad]);
        for (int p = 0; p < spec_.panels; ++p) vpdpbusd(Dot(i, p), Codes(p), x_quad_);
      }
    }
  }

  // A row's dots from units of hi to units of lo.
  void Widen(int chunk, int group, int i) {
    for (int p = 0; p < spec_.panels; ++p) vpslld(Dot(i, p), Dot(i, p), 8);
    if (format().has_min) return;
    LoadCorrection(x_quad_, i, chunk, group);
    for (int p = 0; p < spec_.panels; ++p) vpaddd(Dot(i, p), Dot(i, p), x_quad_);
  }

  // Dots that began with the correction in units of hi, which lost its last bits.
  void WidenFromHigh(int chunk, int group, int i) {
    if (!format().has_min) {
      LoadHighCorrection(x_quad_, i, chunk, group);
      for (int p = 0; p < spec_.panels; ++p) vpsubd(Dot(i, p), Dot(i, p), x_quad_);
    }
    Widen(chunk, group, i);
  }

  // Shifted to the format's zero point.
  void LoadCorrection(const Zmm& to, int i, int chunk, int group) {
    vpbroadcastd(to, ptr[X(i, MetaOffset(chunk) + CorrectionOffset(group))]);
    Shift(to, CorrectionShift());
  }

  // The same in units of hi, of groups without a lo plane, where it is a multiple of them.
  void LoadHighCorrection(const Zmm& to, int i, int chunk, int group) {
    const bool shifted = format().group == 32;  // four bytes on from the second are it
    vpbroadcastd(to, ptr[X(i, MetaOffset(chunk) + CorrectionOffset(group) + (shifted ? 1 : 0))]);
    Shift(to, CorrectionShift() - (shifted ? 0 : 8));
  }

  void Shift(const Zmm& to, int left) {
    if (left > 0) vpslld(to, to, left);
    if (left < 0) vpsrad(to, to, -left);
  }

  TileSpec spec_;
};

}  // namespace

std::unique_ptr<JitCode> MakeTileAvx512(const TileSpec& spec) { return std::make_unique<TileAvx512>(spec); }

}  // namespace thermocline
