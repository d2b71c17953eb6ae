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
// down: outputs run across the lanes.
//
//   zmm0..7     sums of 128 outputs
//   zmm8, 9     a line of codes; values
//   zmm10, 11   h; sum of all h
//   zmm12       the values of the 16 codes
//   zmm13..15   scale, min, y
//
// Per line of 4-bit codes 8 of each shift, look-up and fma: 12 cycles on two ports, 5.3 bytes a cycle.
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
  const Zmm line_ = zmm8, value_ = zmm9, h_ = zmm10, h_sum_ = zmm11, table_ = zmm12, scale_ = zmm13, min_ = zmm14;
  const Zmm y_ = zmm15;
  Xbyak::Label table_data_;

  void Constants() override {
    vmovups(table_, ptr[rip + table_data_]);
    if (format().has_min) vbroadcastss(h_sum_, h_sum());
  }
  void Data() override {
    align(64);
    L(table_data_);
    for (int code = 0; code < 16; ++code) dd(std::bit_cast<uint32_t>(static_cast<float>(code - format().zero_point)));
  }

  void Begin() override {
    for (int q = 0; q < 8; ++q) vpxord(Sum(q), Sum(q), Sum(q));
  }
  void Neuron() override {
    vbroadcastss(h_, ptr[h()]);
    if (format().bits == 4) vmovdqa64(line_, ptr[codes(0)]);
    for (int q = 0; q < 8; ++q) {
      if (format().bits == 8) {
        vpmovsxbd(value_, ptr[codes(16 * q)]);
        vcvtdq2ps(value_, value_);
      } else {
        if (q > 0) vpsrld(value_, line_, 4 * q);
        vpermps(value_, q > 0 ? value_ : line_, table_);  // looks at the low 4 bits of a lane
      }
      vfmadd231ps(Sum(q), value_, h_);
    }
  }
  void End() override {
    for (int q = 0; q < 8; ++q) {
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
