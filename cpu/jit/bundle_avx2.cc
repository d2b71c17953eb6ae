// Bundles with AVX2: the lanes of a line in two halves.
//
// up: vpmaddubsw adds pairs of products in 16 bits, which holds for 8 quads of 4 bits and 4 of 5; 8-bit codes are taken
// as two nibbles.
//
//   ymm0, 1     sums of lanes 0..7 and 8..15
//   ymm2, 3     16-bit sums of the high and the low plane
//   ymm4, 5     32-bit sums, or the 16-bit sums of the high nibbles
//   ymm6, 7     codes of a quad; its high nibbles
//   ymm8        scratch
//   ymm9..12    masks 0x0f and of the fifth bit, 1 in words; the line of fifth bits
//   ymm13       scale, min
//
// down: a block of 128 outputs is walked twice, 8 of every 16 outputs each, two neurons in the words of a lane.
//
//   ymm0..7     int32 dots
//   ymm8, 9     half a line of both neurons: the low words of each lane, the high ones
//   ymm10, 11   values; q of both neurons
//   ymm12, 13   mask of a value; scratch, then scale or sum of h
//   ymm14, 15   scale or min, y
#include "cpu/jit/bundle_jit.h"

namespace thermocline {
namespace {

using Xbyak::Ymm;

class BundleUpAvx2 final : public BundleUpJit {
 public:
  explicit BundleUpAvx2(const BundleShape& shape) : BundleUpJit(shape) {}

 private:
  static Ymm Sum(int half) { return Ymm(half); }
  static Ymm Sum16(int plane) { return Ymm(2 + plane); }
  static Ymm Sum32(int plane) { return Ymm(4 + plane); }
  const Ymm codes_ = ymm6, high_codes_ = ymm7, temp_ = ymm8, nibble_mask_ = ymm9, high_mask_ = ymm10, ones_ = ymm11;
  const Ymm high_line_ = ymm12, scale_ = ymm13;
  Xbyak::Label nibble_data_, high_data_, ones_data_;

  int QuadsPerFlush() const { return format().bits == 5 ? 4 : 8; }

  void Constants() override {
    vpbroadcastd(nibble_mask_, ptr[rip + nibble_data_]);
    vpbroadcastd(high_mask_, ptr[rip + high_data_]);
    vpbroadcastd(ones_, ptr[rip + ones_data_]);
  }
  void Data() override {
    align(4);
    L(nibble_data_);
    dd(0x0f0f0f0f);
    L(high_data_);
    dd(0x10101010);
    L(ones_data_);
    dd(0x00010001);
  }

  void BeginNeuron() override {
    for (int half = 0; half < 2; ++half) vxorps(Sum(half), Sum(half), Sum(half));
  }

  void LoadQuad(int half, int q) {
    vmovdqa(codes_, ptr[codes(64 * (format().bits == 8 ? q : q % 4) + 32 * half)]);
    if (format().bits == 8) {
      vpsrlw(high_codes_, codes_, 4);
      vpand(high_codes_, high_codes_, nibble_mask_);
    } else if (q >= 4) {
      vpsrlw(codes_, codes_, 4);
    }
    vpand(codes_, codes_, nibble_mask_);
    if (format().bits != 5) return;
    if (q < 4) vpsllw(temp_, high_line_, 4 - q);
    if (q > 4) vpsrlw(temp_, high_line_, q - 4);
    vpand(temp_, q == 4 ? high_line_ : temp_, high_mask_);
    vpor(codes_, codes_, temp_);
  }

  void MultiplyAdd(const Ymm& sum, const Ymm& quad, int x_offset, bool first) {
    vpmaddubsw(first ? sum : temp_, quad, ptr[x(x_offset)]);
    if (!first) vpaddw(sum, sum, temp_);
  }

  void Flush(bool first) {
    for (int plane = 0; plane < 2; ++plane) {
      const Ymm wide = Sum32(plane), narrow = Sum16(plane);
      if (format().bits == 8) {
        vpmaddwd(wide, wide, ones_);
        vpslld(wide, wide, 4);
        vpmaddwd(narrow, narrow, ones_);
        vpaddd(wide, wide, narrow);
      } else if (first) {
        vpmaddwd(wide, narrow, ones_);
      } else {
        vpmaddwd(narrow, narrow, ones_);
        vpaddd(wide, wide, narrow);
      }
    }
  }

  void Block() override {
    for (int half = 0; half < 2; ++half) {
      if (format().bits == 5) vmovdqa(high_line_, ptr[codes(256 + 32 * half)]);
      for (int q = 0; q < 8; ++q) {
        LoadQuad(half, q);
        const bool first = q % QuadsPerFlush() == 0;
        for (int plane = 0; plane < 2; ++plane) {
          const int x_offset = (plane ? kSpreadLo : kSpreadHi) + 64 * q + 32 * half;
          MultiplyAdd(Sum16(plane), codes_, x_offset, first);
          if (format().bits == 8) MultiplyAdd(Sum32(plane), high_codes_, x_offset, first);
        }
        if ((q + 1) % QuadsPerFlush() == 0) Flush(q < QuadsPerFlush());
      }
      const Ymm dot = Sum32(0);
      vpslld(dot, dot, 8);
      vpaddd(dot, dot, Sum32(1));
      if (!format().has_min) {
        vmovdqa(temp_, ptr[x(kSpreadCorrection + 32 * half)]);
        if (CorrectionShift() > 0) vpslld(temp_, temp_, CorrectionShift());
        vpaddd(dot, dot, temp_);
      }
      vcvtdq2ps(dot, dot);
      vmulps(dot, dot, ptr[x(kSpreadScale + 32 * half)]);
      vcvtph2ps(scale_, ptr[scales(16 * half)]);
      vfmadd231ps(Sum(half), dot, scale_);
      if (format().has_min) {
        vcvtph2ps(scale_, ptr[scales(32 + 16 * half)]);
        vfmadd231ps(Sum(half), scale_, ptr[x(kSpreadSum + 32 * half)]);
      }
    }
  }

  void EndNeuron() override {
    vaddps(ymm0, ymm0, ymm1);
    vextractf128(xmm1, ymm0, 1);
    vaddps(xmm0, xmm0, xmm1);
    vpermilps(xmm1, xmm0, 0x4e);
    vaddps(xmm0, xmm0, xmm1);
    vpermilps(xmm1, xmm0, 0xb1);
    vaddss(xmm0, xmm0, xmm1);
    vmovss(ptr[out()], xmm0);
  }
};

class BundleDownAvx2 final : public BundleDownJit {
 public:
  explicit BundleDownAvx2(const BundleShape& shape) : BundleDownJit(shape, 2) {}

 private:
  static Ymm Sum(int q) { return Ymm(q); }
  static Ymm Words(int half) { return Ymm(8 + half); }
  const Ymm value_ = ymm10, h_ = ymm11, mask_ = ymm12, temp_ = ymm13, scale_ = ymm14, y_ = ymm15;
  Xbyak::Label mask_data_;

  void Constants() override { vpbroadcastd(mask_, ptr[rip + mask_data_]); }
  void Data() override {
    align(4);
    L(mask_data_);
    dd(value_mask());
  }

  void Begin() override {
    for (int q = 0; q < 8; ++q)
      if (format().has_min)
        vpxor(Sum(q), Sum(q), Sum(q));
      else
        vpbroadcastd(Sum(q), correction());
  }
  void Pair() override {
    constexpr int kLowWords = 0x55;
    vpbroadcastd(h_, ptr[q()]);
    for (int line = 0; line < lines(); ++line) {
      const int offset = 64 * line + 32 * pass();
      vmovdqa(Words(1), ptr[codes(0, offset)]);
      vmovdqa(temp_, ptr[codes(1, offset)]);
      vpslld(Words(0), temp_, 16);
      vpblendw(Words(0), Words(0), Words(1), kLowWords);
      vpsrld(Words(1), Words(1), 16);
      vpblendw(Words(1), temp_, Words(1), kLowWords);
      for (int half = 0; half < 2; ++half)
        for (int v = 0; v < values_per_word(); ++v) {
          const bool last = v + 1 == values_per_word();  // nothing stands above it
          if (v > 0) vpsrlw(value_, Words(half), v * format().bits);
          if (!last) vpand(value_, v > 0 ? value_ : Words(half), mask_);
          vpmaddwd(value_, value_, h_);
          vpaddd(Sum(quad(line, half, v)), Sum(quad(line, half, v)), value_);
        }
    }
  }
  void End() override {
    vbroadcastss(temp_, h_scale());
    for (int q = 0; q < 8; ++q) {
      vcvtdq2ps(Sum(q), Sum(q));
      vmulps(Sum(q), Sum(q), temp_);
    }
    if (format().has_min) vbroadcastss(temp_, h_sum());
    for (int q = 0; q < 8; ++q) {
      const int output = 16 * q + 8 * pass();
      vcvtph2ps(scale_, ptr[scales(output)]);
      vmovaps(y_, ptr[y(output)]);
      vfmadd231ps(y_, Sum(q), scale_);
      if (format().has_min) {
        vcvtph2ps(scale_, ptr[mins(output)]);
        vfmadd231ps(y_, temp_, scale_);
      }
      vmovaps(ptr[y(output)], y_);
    }
  }
};

}  // namespace

std::unique_ptr<JitCode> MakeBundleUpAvx2(const BundleShape& shape) { return std::make_unique<BundleUpAvx2>(shape); }
std::unique_ptr<JitCode> MakeBundleDownAvx2(const BundleShape& shape) {
  return std::make_unique<BundleDownAvx2>(shape);
}

}  // namespace thermocline
