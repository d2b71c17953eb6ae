// Bundles with AVX-512 VNNI.
//
// up: K runs across the lanes, a lane for each group of 32, so that scales apply to whole registers.
//
//   zmm0        sums
//   zmm4..11    the 8 quads of 512 k
//   zmm12..15   int32 dots: high and low plane, even and odd quads
//   zmm16..21   scratch while unpacking
//   zmm22, 23   masks 0x0f and the high bits' place
//   zmm24, 25   scale, min
//
// A block of 4 bits is 288 bytes and about 50 instructions: 15 bytes a cycle, bound by memory.
//
// down: outputs run across the lanes, two neurons in the words of a lane.
//
//   zmm0..7     int32 dots of 128 outputs
//   zmm8, 9     a line of both neurons: the low words of each lane, the high ones
//   zmm10..13   values
//   zmm14..18   q of both neurons; mask of a value, correction, scale and sum of h
//   zmm19..21   scale, min, y
//
// Per line of each of two neurons, 4 bits: 4 to pair words, 12 to take values out, 8 products: 12 cycles on two ports,
// 10.7 bytes a cycle.
#include "cpu/jit/bundle_jit.h"

namespace thermocline {
namespace {

using Xbyak::Zmm;

class BundleUpAvx512 final : public BundleUpJit {
 public:
  explicit BundleUpAvx512(const BundleShape& shape) : BundleUpJit(shape) {}

 private:
  static Zmm Quad(int q) { return Zmm(4 + q); }
  static Zmm High(int i) { return Zmm(12 + i); }
  static Zmm Low(int i) { return Zmm(14 + i); }
  static Zmm Temp(int i) { return Zmm(16 + i); }
  const Zmm sum_ = zmm0, nibble_mask_ = zmm22, high_mask_ = zmm23, scale_ = zmm24, min_ = zmm25;
  Xbyak::Label nibble_data_, high_data_;

  void Constants() override {
    vpbroadcastd(nibble_mask_, ptr[rip + nibble_data_]);
    vpbroadcastd(high_mask_, ptr[rip + high_data_]);
  }
  void Data() override {
    align(4);
    L(nibble_data_);
    dd(0x0f0f0f0f);
    L(high_data_);
    dd(0x10101010);
  }

  void BeginNeuron() override { vpxord(sum_, sum_, sum_); }

  void Unpack() {
    if (format().bits == 8) {
      for (int q = 0; q < 8; ++q) vmovdqa64(Quad(q), ptr[codes(64 * q)]);
      return;
    }
    for (int i = 0; i < 4; ++i) {
      vmovdqa64(Quad(i), ptr[codes(64 * i)]);
      vpsrlw(Quad(i + 4), Quad(i), 4);
      vpandd(Quad(i), Quad(i), nibble_mask_);
      vpandd(Quad(i + 4), Quad(i + 4), nibble_mask_);
    }
    if (format().bits == 4) return;
    vmovdqa64(Temp(0), ptr[codes(256)]);
    for (int q = 0; q < 8; ++q) {
      const Zmm shifted = q == 4 ? Temp(0) : Temp(1 + q % 4);
      if (q < 4) vpsllw(shifted, Temp(0), 4 - q);
      if (q > 4) vpsrlw(shifted, Temp(0), q - 4);
      constexpr int kOrOfAnd = 0xf8;  // a | (b & c)
      vpternlogd(Quad(q), shifted, high_mask_, kOrOfAnd);
    }
  }

  void Block() override {
    Unpack();
    vcvtph2ps(scale_, ptr[scales(0)]);
    if (format().has_min) vcvtph2ps(min_, ptr[scales(32)]);
    for (int i = 0; i < 2; ++i) vpxord(High(i), High(i), High(i));
    for (int i = 0; i < 2; ++i) vpxord(Low(i), Low(i), Low(i));
    if (!format().has_min) {
      vmovdqa64(Low(0), ptr[x(kSpreadCorrection)]);
      if (CorrectionShift() > 0) vpslld(Low(0), Low(0), CorrectionShift());
    }
    for (int q = 0; q < 8; ++q) {
      vpdpbusd(High(q % 2), Quad(q), ptr[x(kSpreadHi + 64 * q)]);
      vpdpbusd(Low(q % 2), Quad(q), ptr[x(kSpreadLo + 64 * q)]);
    }
    vpaddd(High(0), High(0), High(1));
    vpaddd(Low(0), Low(0), Low(1));
    vpslld(High(0), High(0), 8);
    vpaddd(Low(0), Low(0), High(0));
    vcvtdq2ps(Low(0), Low(0));
    vmulps(Low(0), Low(0), ptr[x(kSpreadScale)]);
    vfmadd231ps(sum_, Low(0), scale_);
    if (format().has_min) vfmadd231ps(sum_, min_, ptr[x(kSpreadSum)]);
  }

  void EndNeuron() override {
    vextractf64x4(ymm1, sum_, 1);
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

class BundleDownAvx512 final : public BundleDownJit {
 public:
  explicit BundleDownAvx512(const BundleShape& shape) : BundleDownJit(shape, 1) {}

 private:
  static Zmm Sum(int q) { return Zmm(q); }
  static Zmm Words(int half) { return Zmm(8 + half); }
  static Zmm Value(int i) { return Zmm(10 + i % 4); }
  const Zmm h_ = zmm14, mask_ = zmm15, correction_ = zmm16, h_scale_ = zmm17, h_sum_ = zmm18;
  const Zmm scale_ = zmm19, min_ = zmm20, y_ = zmm21;
  const Xbyak::Opmask low_words_ = k1, high_words_ = k2;
  Xbyak::Label mask_data_;

  void Constants() override {
    vpbroadcastd(mask_, ptr[rip + mask_data_]);
    vpbroadcastd(correction_, correction());
    vbroadcastss(h_scale_, h_scale());
    if (format().has_min) vbroadcastss(h_sum_, h_sum());
    // rax, rbx and so on are taken: masks by way of the vector unit.
    vpternlogd(Value(0), Value(0), Value(0), 0xff);
    vpslld(Value(1), Value(0), 16);
    vpmovw2m(high_words_, Value(1));
    knotd(low_words_, high_words_);
  }
  void Data() override {
    align(4);
    L(mask_data_);
    dd(value_mask());
  }

  void Begin() override {
    for (int q = 0; q < 8; ++q)
      if (format().has_min)
        vpxord(Sum(q), Sum(q), Sum(q));
      else
        vmovdqa64(Sum(q), correction_);
  }
  void Pair() override {
    vpbroadcastd(h_, ptr[q()]);
    for (int line = 0; line < lines(); ++line) {
      const auto first = ptr[codes(0, 64 * line)], second = ptr[codes(1, 64 * line)];
      vpslld(Words(0), second, 16);
      vmovdqu16(Words(0) | low_words_, first);
      vpsrld(Words(1), first, 16);
      vmovdqu16(Words(1) | high_words_, second);
      for (int half = 0; half < 2; ++half)
        for (int v = 0; v < values_per_word(); ++v) {
          const Zmm& value = Value(v);
          const bool last = v + 1 == values_per_word();  // nothing stands above it
          if (v > 0) vpsrlw(value, Words(half), v * format().bits);
          if (!last) vpandd(value, v > 0 ? value : Words(half), mask_);
          vpdpwssd(Sum(quad(line, half, v)), value, h_);
        }
    }
  }
  void End() override {
    for (int q = 0; q < 8; ++q) {
      vcvtdq2ps(Sum(q), Sum(q));
      vmulps(Sum(q), Sum(q), h_scale_);
      vcvtph2ps(scale_, ptr[scales(16 * q)]);
      vmovaps(y_, ptr[y(16 * q)]);
      vfmadd231ps(y_, Sum(q), scale_);
      if (format().has_min) {
        vcvtph2ps(min_, ptr[mins(16 * q)]);
        vfmadd231ps(y_, h_sum_, min_);
      }
      vmovaps(ptr[y(16 * q)], y_);
    }
  }
};

}  // namespace

std::unique_ptr<JitCode> MakeBundleUpAvx512(const BundleShape& shape) {
  return std::make_unique<BundleUpAvx512>(shape);
}
std::unique_ptr<JitCode> MakeBundleDownAvx512(const BundleShape& shape) {
  return std::make_unique<BundleDownAvx512>(shape);
}

}  // namespace thermocline
