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
// vpdpbusd, conversion, product and fma per group, row and panel, so 8/11 of the peak of vpdpbusd (8/12 with mins);
// with both planes 16/21. Both planes go into the same sum, the high one first, shifted by 8 bits in between.
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
  const Xbyak::Reg64 args_ = rdi, w_ = rsi, n_pairs_ = rax, y_row_ = r13, next_x_ = r12, y_ = rbx, n_tiles_ = rbp;
  const Xbyak::Reg64 tile_stride_ = r15;  // bytes of x from a tile to the next
  const Xbyak::Reg32 lo_groups_ = r14d;
  Xbyak::Label scale_256_;

  Xbyak::RegExp Panel(int p, int offset) const { return w_ + (p * DecodedPanelBytes(format()) + offset); }
  Xbyak::RegExp X(int i, int offset) const { return RowReg(i) + offset; }

  template <typename Emit>
  void ForEach(const Emit& emit) {
    for (int i = 0; i < spec_.m; ++i)
      for (int p = 0; p < spec_.panels; ++p) emit(i, p);
  }

  void Generate() override {
    const Xbyak::Reg64 saved[] = {rbx, rbp, r12, r13, r14, r15};
    for (const auto& reg : saved) push(reg);
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
    for (int i = 0; i < spec_.m; ++i) {
      const Xbyak::RegExp mask = X(i, MetaOffset(0) + offsetof(ActivationMeta, lo_groups));
      if (i == 0)
        movzx(lo_groups_, word[mask]);
      else
        or_(lo_groups_.cvt16(), word[mask]);
    }
    PrefetchY();
    mov(n_pairs_, ptr[args_ + offsetof(TileArgs, n_pairs)]);
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

  void Chunk(int chunk) {
    Xbyak::Label both, done;
    test(lo_groups_, 1 << chunk);
    jnz(both, T_NEAR);
    for (int group = 0; group < groups_per_chunk(); ++group) Group(chunk, group, 1);
    jmp(done, T_NEAR);
    L(both);
    if (chunk == 0) PrefetchX(kActivationLoLine);
    for (int group = 0; group < groups_per_chunk(); ++group) Group(chunk, group, 2);
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

  void Group(int chunk, int group, int planes) {
    const int base = chunk * DecodedChunkBytes(format());
    for (int p = 0; p < spec_.panels; ++p) {
      vmovaps(Scale(p), ptr[Panel(p, base + 512 + 64 * group)]);
      if (planes == 1) vmulps(Scale(p), Scale(p), ptr_b[rip + scale_256_]);
      if (format().has_min) vmovaps(Min(p), ptr[Panel(p, base + 512 + 64 * (groups_per_chunk() + group))]);
    }
    BeginDots(chunk, group, planes);
    Dots(chunk, group, 0);
    if (planes == 2) {
      Widen(chunk, group);
      Dots(chunk, group, 1);
    }
    ForEach([&](int i, int p) {
      vcvtdq2ps(Dot(i, p), Dot(i, p));
      vmulps(Dot(i, p), Dot(i, p), ptr_b[X(i, MetaOffset(chunk) + offsetof(ActivationMeta, scale))]);
      vfmadd231ps(Sum(i, p), Dot(i, p), Scale(p));
      if (format().has_min) vfmadd231ps(Sum(i, p), Min(p), ptr_b[X(i, MetaOffset(chunk) + SumOffset(group))]);
    });
  }

  void BeginDots(int chunk, int group, int planes) {
    for (int i = 0; i < spec_.m; ++i) {
      if (format().has_min || planes == 2)
        vpxord(Dot(i, 0), Dot(i, 0), Dot(i, 0));
      else
        LoadHighCorrection(Dot(i, 0), i, chunk, group);
      for (int p = 1; p < spec_.panels; ++p) vmovdqa64(Dot(i, p), Dot(i, 0));
    }
  }

  void Dots(int chunk, int group, int plane) {
    const int quads = 8 / groups_per_chunk(), base = chunk * DecodedChunkBytes(format());
    for (int q = group * quads; q < (group + 1) * quads; ++q) {
      for (int p = 0; p < spec_.panels; ++p) vmovdqa64(Codes(p), ptr[Panel(p, base + 64 * q)]);
      for (int i = 0; i < spec_.m; ++i) {
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

  // From units of hi to units of lo.
  void Widen(int chunk, int group) {
    for (int i = 0; i < spec_.m; ++i) {
      for (int p = 0; p < spec_.panels; ++p) vpslld(Dot(i, p), Dot(i, p), 8);
      if (format().has_min) continue;
      LoadCorrection(x_quad_, i, chunk, group);
      for (int p = 0; p < spec_.panels; ++p) vpaddd(Dot(i, p), Dot(i, p), x_quad_);
    }
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
