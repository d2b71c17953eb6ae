// 8 output rows per ymm, so a panel is walked twice. vpmaddubsw adds pairs of products in 16 bits, which holds for a
// while (kQuadsPerFlush) before vpmaddwd has to widen them.
//
//   ymm0, 1     sums, one per row of x
//   ymm2..5     16-bit sums: high plane of row 0, 1, low plane of row 0, 1
//   ymm6..9     32-bit sums in the same order; for 8-bit codes the 16-bit sums of the high nibbles
//   ymm10, 11   codes of one quad
//   ymm12, 13   scratch
//   ymm14, 15   scale and min
#include "cpu/jit/linear_jit.h"

namespace thermocline {
namespace {

using Xbyak::Ymm;

class LinearAvx2 final : public PanelJit {
 public:
  explicit LinearAvx2(const LinearSpec& spec) : PanelJit(spec, 2) {}

 private:
  static constexpr int kPrefetchBytes = 2048;

  static Ymm Sum(int m) { return Ymm(m); }
  static Ymm Sum16(int plane, int m) { return Ymm(2 + 2 * plane + m); }
  static Ymm Sum32(int plane, int m) { return Ymm(6 + 2 * plane + m); }
  const Ymm codes_ = ymm10, high_codes_ = ymm11, temp_ = ymm12, temp2_ = ymm13, scale_ = ymm14, min_ = ymm15;
  Xbyak::Label nibble_data_, high_data_, ones_data_;

  // |code * s8| summed over a pair and this many quads stays within 16 bits: 15 * 128 * 2 * 8 = 30720 for 4 bits, 31744
  // for 5, 32256 for 6. 8-bit codes are taken as two nibbles.
  int QuadsPerFlush() const { return format().bits == 5 ? 4 : format().bits == 6 ? 2 : 8; }
  int HalfOffset(int bytes_per_row) const { return pass() * rows_per_pass() * bytes_per_row; }

  void Data() override {
    align(32);
    const auto fill = [&](Xbyak::Label& label, uint32_t value) {
      L(label);
      for (int i = 0; i < 8; ++i) dd(value);
    };
    fill(nibble_data_, 0x0f0f0f0f);
    fill(high_data_, format().bits == 6 ? 0x30303030 : 0x10101010);
    fill(ones_data_, 0x00010001);
  }

  void BeginPanel() override {
    Xbyak::Label done;
    for (int i = 0; i < m(); ++i) vxorps(Sum(i), Sum(i), Sum(i));
    cmp(accumulate(), 0);
    je(done);
    ForEachOutputRow([&](int i) { vmovups(Sum(i), ptr[y_row(HalfOffset(sizeof(float)))]); });
    L(done);
  }

  void EndPanel() override {
    ForEachOutputRow([&](int i) { vmovups(ptr[y_row(HalfOffset(sizeof(float)))], Sum(i)); });
  }

  void LoadScales(int chunk, int group) {
    if (f16_scales()) {
      vcvtph2ps(scale_, ptr[scales(32 * chunk + HalfOffset(2))]);
      if (format().has_min) vcvtph2ps(min_, ptr[scales(64 + 32 * chunk + HalfOffset(2))]);
      return;
    }
    const int in_pair = chunk * groups_per_chunk() + group;
    if (format().scale == ScaleKind::kF16xS8)
      vpmovsxbd(scale_, ptr[scales(kPanelRows * in_pair + HalfOffset(1))]);
    else
      vpmovzxbd(scale_, ptr[scales(kPanelRows * in_pair + HalfOffset(1))]);
    vcvtdq2ps(scale_, scale_);
    vcvtph2ps(temp_, ptr[super_scales(HalfOffset(2))]);
    vmulps(scale_, scale_, temp_);
    if (format().has_min) {
      vpmovzxbd(min_, ptr[scales(kPanelRows * (format().block_k() / format().group + in_pair) + HalfOffset(1))]);
      vcvtdq2ps(min_, min_);
      vcvtph2ps(temp_, ptr[super_scales(32 + HalfOffset(2))]);
      vmulps(min_, min_, temp_);
      vxorps(temp_, temp_, temp_);
      vsubps(min_, temp_, min_);
    }
  }

  // Quad q of the chunk into codes_ (and high_codes_ for 8 bits, each then a nibble).
  void LoadQuad(int chunk, int q) {
    const int half = HalfOffset(4);
    if (format().bits == 8) {
      vmovdqa(codes_, ptr[codes(chunk, 64 * q + half)]);
      vpsrlw(high_codes_, codes_, 4);
      vpand(codes_, codes_, ptr[rip + nibble_data_]);
      vpand(high_codes_, high_codes_, ptr[rip + nibble_data_]);
      return;
    }
    vmovdqa(codes_, ptr[codes(chunk, 64 * (q % 4) + half)]);
    if (q >= 4) vpsrlw(codes_, codes_, 4);
    vpand(codes_, codes_, ptr[rip + nibble_data_]);
    if (format().bits == 4) return;
    const int line = format().bits == 5 ? 0 : q / 4;
    const int left = format().bits == 5 ? 4 - q : 4 - 2 * (q % 4);
    vmovdqa(temp_, ptr[codes(chunk, 256 + 64 * line + half)]);
    if (left > 0) vpsllw(temp_, temp_, left);
    if (left < 0) vpsrlw(temp_, temp_, -left);
    vpand(temp_, temp_, ptr[rip + high_data_]);
    vpor(codes_, codes_, temp_);
  }

  // acc (+)= pairs of codes * x, 16 bits.
  void MultiplyAdd(const Ymm& acc, const Ymm& quad, const Ymm& x_quad, bool first) {
    if (first) {
      vpmaddubsw(acc, quad, x_quad);
    } else {
      vpmaddubsw(temp2_, quad, x_quad);
      vpaddw(acc, acc, temp2_);
    }
  }

  void Dots(int chunk, int first_quad, int n_quads) {
    for (int j = 0; j < n_quads; ++j) {
      const int q = first_quad + j;
      const int in_flush = j % QuadsPerFlush();
      LoadQuad(chunk, q);
      for (int plane = 0; plane < 2; ++plane)
        for (int i = 0; i < m(); ++i) {
          vpbroadcastd(temp_, ptr[x(i, QuadOffset(chunk, plane, q))]);
          MultiplyAdd(Sum16(plane, i), codes_, temp_, in_flush == 0);
          if (format().bits == 8) MultiplyAdd(Sum32(plane, i), high_codes_, temp_, in_flush == 0);
        }
      if (in_flush + 1 == QuadsPerFlush() || j + 1 == n_quads) Flush(j < QuadsPerFlush());
    }
  }

  void Flush(bool first) {
    for (int plane = 0; plane < 2; ++plane)
      for (int i = 0; i < m(); ++i) {
        const Ymm wide = Sum32(plane, i), narrow = Sum16(plane, i);
        if (format().bits == 8) {
          vpmaddwd(wide, wide, ptr[rip + ones_data_]);
          vpslld(wide, wide, 4);
          vpmaddwd(narrow, narrow, ptr[rip + ones_data_]);
          vpaddd(wide, wide, narrow);
        } else if (first) {
          vpmaddwd(wide, narrow, ptr[rip + ones_data_]);
        } else {
          vpmaddwd(narrow, narrow, ptr[rip + ones_data_]);
          vpaddd(wide, wide, narrow);
        }
      }
  }

  void Chunk(int chunk) override {
    if (pass() == 0)
      for (int line = 0; line < format().bits; ++line) prefetcht0(ptr[codes(chunk, 64 * line + kPrefetchBytes)]);
    const int quads = 8 / groups_per_chunk();
    for (int group = 0; group < groups_per_chunk(); ++group) {
      LoadScales(chunk, group);
      Dots(chunk, group * quads, quads);
      AddToSums(chunk, group);
    }
  }

  void AddToSums(int chunk, int group) {
    for (int i = 0; i < m(); ++i) {
      const Ymm dot = Sum32(0, i);
      vpslld(dot, dot, 8);
      vpaddd(dot, dot, Sum32(1, i));
      if (!format().has_min) {
        vpbroadcastd(temp_, ptr[x(i, MetaOffset(chunk) + CorrectionOffset(group))]);
        if (CorrectionShift() > 0) vpslld(temp_, temp_, CorrectionShift());
        if (CorrectionShift() < 0) vpsrad(temp_, temp_, -CorrectionShift());
        vpaddd(dot, dot, temp_);
      }
      vcvtdq2ps(dot, dot);
      vbroadcastss(temp_, ptr[x(i, MetaOffset(chunk) + offsetof(ActivationMeta, scale))]);
      vmulps(dot, dot, temp_);
      vfmadd231ps(Sum(i), dot, scale_);
      if (format().has_min) {
        vbroadcastss(temp_, ptr[x(i, MetaOffset(chunk) + SumOffset(group))]);
        vfmadd231ps(Sum(i), min_, temp_);
      }
    }
  }
};

}  // namespace

std::unique_ptr<JitCode> MakeLinearAvx2(const LinearSpec& spec) { return std::make_unique<LinearAvx2>(spec); }

}  // namespace thermocline
