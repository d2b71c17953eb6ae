// Packed panels with AVX-512 VNNI, for few rows, and their decoding. 16 output rows per zmm, one int32 lane each;
// vpdpbusd takes 4 k of all 16 rows from one register and the same 4 k of x broadcast from memory.
//
//   zmm0..5     sums, one per row of x
//   zmm6..13    the 8 quads of a chunk, unpacked once for all rows
//   zmm14..25   int32 dots: high and low plane of up to 6 rows; scratch while unpacking
//   zmm26, 27   scale and min of the 16 output rows for the group at hand
//   zmm28       mask of the low plane's bits
//   zmm29       mask of the high plane's bits, or of a scale of 4 bits: no type has both
//   zmm30       d of a super-block
//   zmm31       dmin of a super-block, or the codebook: no type has both
//
// M=1 is bound by memory: a chunk of Q4_0 is 288 bytes and about 40 instructions. M=6 is bound by the two ports for 512
// bits: 21 micro-ops a row, of which 16 are vpdpbusd, and 13 to unpack, so 0.69 of the peak of vpdpbusd, and 0.66 with
// 4 rows, whose 8 chains of dots are also fewer than the 10 that two ports with a latency of 5 cycles can hold.
#include <xbyak/xbyak_util.h>

#include "cpu/amx.h"
#include "cpu/jit/linear_jit.h"

namespace thermocline {
namespace {

using Xbyak::Zmm;

// Codes and scales of a chunk in registers.
class PanelAvx512 : public PanelJit {
 protected:
  explicit PanelAvx512(const LinearSpec& spec) : PanelJit(spec, 1) {}

  // How far ahead of use lines are fetched. Two Xeon cores read 1.1 times a plain read's rate when they are fetched far
  // ahead into L2, which has more misses in flight than L1 has, and from there into L1. Two Zen 5 cores read 1.05 to
  // 1.1 times as fast when they go straight into L1.
  static constexpr int kPrefetchL2Bytes = 12288, kPrefetchL1Bytes = 3072, kPrefetchAmdBytes = 8192;
  const bool amd_ = Xbyak::util::Cpu().has(Xbyak::util::Cpu::tAMD);

  static Zmm Quad(int q) { return Zmm(6 + q); }
  static Zmm Temp(int i) { return Zmm(14 + i); }
  const Zmm scale_ = zmm26, min_ = zmm27, low_mask_ = zmm28, high_mask_ = zmm29, d_ = zmm30, dmin_ = zmm31;
  const Zmm codebook_ = dmin_, scale_mask_ = high_mask_;
  Xbyak::Label low_data_, high_data_, codebook_data_;

  void Constants() override {
    vpbroadcastd(low_mask_, ptr[rip + low_data_]);
    vpbroadcastd(high_mask_, ptr[rip + high_data_]);
    if (format().codebook) vbroadcasti32x4(codebook_, ptr[rip + codebook_data_]);
  }

  void Data() override {
    align(16);
    L(codebook_data_);
    for (int i = 0; i < 16; ++i) db(format().codebook ? (*format().codebook)[i] : 0);
    L(low_data_);
    dd(format().bits < 4 ? 0x03030303 : 0x0f0f0f0f);
    L(high_data_);
    if (format().scale == ScaleKind::kF16xU4)
      dd(15);
    else
      dd(format().bits == 3 ? 0x04040404 : format().bits == 6 ? 0x30303030 : 0x10101010);
  }

  void Prefetch(const Xbyak::RegExp& lines, int n) {
    if (cached()) return;
    for (int i = 0; i < n; ++i) {
      if (!amd_) prefetcht1(ptr[lines + (64 * i + kPrefetchL2Bytes)]);
      prefetcht0(ptr[lines + (64 * i + (amd_ ? kPrefetchAmdBytes : kPrefetchL1Bytes))]);
    }
  }

  void BeginBlock() override {
    Prefetch(scales(0), format().scale_bytes() / 64);
    vcvtph2ps(d_, ptr[super_scales(0)]);
    if (format().has_min) {
      vcvtph2ps(dmin_, ptr[super_scales(32)]);
      vpxord(min_, min_, min_);
      vsubps(dmin_, min_, dmin_);
    }
  }

  void Unpack(int chunk) {
    Prefetch(codes(chunk, 0), format().bits);
    if (!format().has_super_scales() && chunk == 1) Prefetch(scales(0), format().scale_bytes() / 64);
    if (format().bits == 8) {
      for (int q = 0; q < 8; ++q) vmovdqa64(Quad(q), ptr[codes(chunk, 64 * q)]);
      return;
    }
    if (format().bits < 4)
      UnpackPairs(chunk);
    else
      UnpackNibbles(chunk);
    const int low_bits = format().bits < 4 ? 2 : 4, high_plane = 64 * low_bits;
    if (format().bits == 3 || format().bits == 5) {
      vmovdqa64(Temp(0), ptr[codes(chunk, high_plane)]);
      for (int q = 0; q < 8; ++q) OrHighBits(q, Temp(0), low_bits - q);
    } else if (format().bits == 6) {
      for (int i = 0; i < 2; ++i) {
        vmovdqa64(Temp(i), ptr[codes(chunk, high_plane + 64 * i)]);
        for (int j = 0; j < 4; ++j) OrHighBits(4 * i + j, Temp(i), low_bits - 2 * j);
      }
    }
  }

  void UnpackNibbles(int chunk) {
    for (int i = 0; i < 4; ++i) {
      vmovdqa64(Quad(i), ptr[codes(chunk, 64 * i)]);
      vpsrlw(Quad(i + 4), Quad(i), 4);
      for (const int q : {i, i + 4}) {
        vpandd(Quad(q), Quad(q), low_mask_);
        if (format().codebook) vpshufb(Quad(q), codebook_, Quad(q));
      }
    }
  }

  void UnpackPairs(int chunk) {
    for (int i = 0; i < 2; ++i) {
      const Zmm line = Quad(4 * i);
      vmovdqa64(line, ptr[codes(chunk, 64 * i)]);
      for (int j = 1; j < 4; ++j) vpsrlw(Quad(4 * i + j), line, 2 * j);
      for (int j = 0; j < 4; ++j) vpandd(Quad(4 * i + j), Quad(4 * i + j), low_mask_);
    }
  }

  // Quad(q) |= (line << left) & mask, byte by byte: what a shift of words moves between bytes falls outside the mask.
  void OrHighBits(int q, const Zmm& line, int left) {
    const Zmm shifted = Temp(2 + q % 6);
    if (left > 0)
      vpsllw(shifted, line, left);
    else if (left < 0)
      vpsrlw(shifted, line, -left);
    constexpr int kOrOfAnd = 0xf8;  // a | (b & c)
    vpternlogd(Quad(q), left ? shifted : line, high_mask_, kOrOfAnd);
  }

  void LoadScales(int chunk, int group) {
    if (format().scale == ScaleKind::kBF16) {
      vpmovzxwd(scale_, ptr[scales(32 * chunk)]);
      vpslld(scale_, scale_, 16);
      return;
    }
    if (format().scale == ScaleKind::kF16) {
      vcvtph2ps(scale_, ptr[scales(32 * chunk)]);
      if (format().has_min) vcvtph2ps(min_, ptr[scales(64 + 32 * chunk)]);
      return;
    }
    const int in_pair = chunk * groups_per_chunk() + group;
    const auto sub = ptr[scales(kPanelRows * in_pair)];
    if (format().scale == ScaleKind::kF16xS8)
      vpmovsxbd(scale_, sub);
    else
      vpmovzxbd(scale_, sub);
    if (format().scale == ScaleKind::kF16xU4) {
      vpsrld(min_, scale_, 4);
      vpandd(scale_, scale_, scale_mask_);
    } else if (format().has_min) {
      vpmovzxbd(min_, ptr[scales(kPanelRows * (format().block_k() / format().group + in_pair))]);
    }
    vcvtdq2ps(scale_, scale_);
    vmulps(scale_, scale_, d_);
    if (format().has_min) {
      vcvtdq2ps(min_, min_);
      vmulps(min_, min_, dmin_);
    }
  }
};

class LinearAvx512 final : public PanelAvx512 {
 public:
  explicit LinearAvx512(const LinearSpec& spec) : PanelAvx512(spec) {}

 private:
  static Zmm Sum(int m) { return Zmm(m); }
  static Zmm High(int i) { return Zmm(14 + i); }
  static Zmm Low(int i) { return Zmm(20 + i); }

  void BeginPanel() override {
    Xbyak::Label done;
    for (int i = 0; i < m(); ++i) vpxord(Sum(i), Sum(i), Sum(i));
    cmp(accumulate(), 0);
    je(done);
    ForEachOutputRow([&](int i) { vmovups(Sum(i), ptr[y_row(0)]); });
    L(done);
  }

  void EndPanel() override {
    ForEachOutputRow([&](int i) { vmovups(ptr[y_row(0)], Sum(i)); });
  }

  void Chunk(int chunk) override {
    Unpack(chunk);
    for (int group = 0; group < groups_per_chunk(); ++group) {
      LoadScales(chunk, group);
      Dots(chunk, group);
      for (int i = 0; i < m(); ++i) AddToSum(i, MetaOffset(chunk), group);
    }
  }

  // Low(i) = the group's exact dot with row i.
  void Dots(int chunk, int group) {
    for (int i = 0; i < m(); ++i) {
      if (format().has_min) {
        vpxord(Low(i), Low(i), Low(i));
      } else {
        vpbroadcastd(Low(i), ptr[x(i, MetaOffset(chunk) + CorrectionOffset(group))]);
        if (CorrectionShift() > 0) vpslld(Low(i), Low(i), CorrectionShift());
        if (CorrectionShift() < 0) vpsrad(Low(i), Low(i), -CorrectionShift());
      }
      vpxord(High(i), High(i), High(i));
    }
    const int quads = 8 / groups_per_chunk();
    for (int q = group * quads; q < (group + 1) * quads; ++q)
      for (int i = 0; i < m(); ++i) {
        vpdpbusd(High(i), Quad(q), ptr_b[x(i, QuadOffset(chunk, 0, q))]);
        vpdpbusd(Low(i), Quad(q), ptr_b[x(i, QuadOffset(chunk, 1, q))]);
      }
    for (int i = 0; i < m(); ++i) {
      vpslld(High(i), High(i), 8);
      vpaddd(Low(i), Low(i), High(i));
    }
  }

  void AddToSum(int i, int meta_offset, int group) {
    vcvtdq2ps(Low(i), Low(i));
    vmulps(Low(i), Low(i), ptr_b[x(i, meta_offset + offsetof(ActivationMeta, scale))]);
    vfmadd231ps(Sum(i), Low(i), scale_);
    if (format().has_min) vfmadd231ps(Sum(i), min_, ptr_b[x(i, meta_offset + SumOffset(group))]);
  }
};

class DecodeAvx512 final : public PanelAvx512 {
 public:
  explicit DecodeAvx512(const PackedFormat& format) : PanelAvx512({&format, 0}) {}

 private:
  void Chunk(int chunk) override {
    const int base = chunk * DecodedChunkBytes(format());
    Unpack(chunk);
    for (int q = 0; q < 8; ++q) vmovdqa64(ptr[y() + (base + 64 * q)], Quad(q));
    for (int group = 0; group < groups_per_chunk(); ++group) {
      LoadScales(chunk, group);
      vmovaps(ptr[y() + (base + 512 + 64 * group)], scale_);
      if (format().has_min) vmovaps(ptr[y() + (base + 512 + 64 * (groups_per_chunk() + group))], min_);
    }
  }
  void EndPair() override { add(y(), 2 * DecodedChunkBytes(format())); }
};

// Values in BF16 instead of codes, in steps of cpu/jit/tile_amx.h.
//
//   zmm0..3     the four k of a quad, of 16 rows each
//   zmm22..25   the lowest byte of a lane; shuffles that take its second and third there; from 16 values of one k and
//               16 of the next to pairs
class DecodeBf16Avx512 final : public PanelAvx512 {
 public:
  explicit DecodeBf16Avx512(const PackedFormat& format) : PanelAvx512({&format, 0}) {}

 private:
  static Zmm Value(int i) { return Zmm(i); }
  const Zmm byte_mask_ = zmm22, second_ = zmm23, third_ = zmm24, pairs_ = zmm25;
  Xbyak::Label byte_data_, zero_data_, second_data_, third_data_, pairs_data_;

  void Constants() override {
    PanelAvx512::Constants();
    vpbroadcastd(byte_mask_, ptr[rip + byte_data_]);
    vbroadcasti32x4(second_, ptr[rip + second_data_]);
    vbroadcasti32x4(third_, ptr[rip + third_data_]);
    vmovdqu64(pairs_, ptr[rip + pairs_data_]);
  }

  void Data() override {
    PanelAvx512::Data();
    L(byte_data_);
    dd(0xff);
    L(zero_data_);
    dd(std::bit_cast<uint32_t>(-static_cast<float>(format().zero_point)));
    for (const int byte : {1, 2}) {
      L(byte == 1 ? second_data_ : third_data_);
      for (int lane = 0; lane < 4; ++lane) dd(0x80808000 | static_cast<uint32_t>(4 * lane + byte));
    }
    L(pairs_data_);
    for (uint16_t row = 0; row < kPanelRows; ++row) dw(row), dw(static_cast<uint16_t>(kPanelRows + row));
  }

  void Chunk(int chunk) override {
    const int quads = 8 / groups_per_chunk(), step = chunk * kAmxStepBytes;
    Unpack(chunk);
    for (int group = 0; group < groups_per_chunk(); ++group) {
      LoadScales(chunk, group);
      if (!format().has_min) vmulps(min_, scale_, ptr_b[rip + zero_data_]);  // exact: zero points are powers of two
      for (int q = group * quads; q < (group + 1) * quads; ++q) {
        Values(Quad(q));
        StorePairs(Value(0), Value(1), step + 128 * q);
        StorePairs(Value(2), Value(3), step + 128 * q + 64);
      }
    }
  }
  void EndPair() override { add(y(), 2 * kAmxStepBytes); }

  void Values(const Zmm& codes) {
    vpandd(Value(0), codes, byte_mask_);
    vpshufb(Value(1), codes, second_);
    vpshufb(Value(2), codes, third_);
    vpsrld(Value(3), codes, 24);
    for (int i = 0; i < 4; ++i) vcvtdq2ps(Value(i), Value(i));
    for (int i = 0; i < 4; ++i) vfmadd213ps(Value(i), scale_, min_);
  }
  void StorePairs(const Zmm& even, const Zmm& odd, int offset) {
    vcvtne2ps2bf16(even, odd, even);
    vpermw(even, pairs_, even);
    vmovdqa64(ptr[y() + offset], even);
  }
};

}  // namespace

std::unique_ptr<JitCode> MakeLinearAvx512(const LinearSpec& spec) { return std::make_unique<LinearAvx512>(spec); }
std::unique_ptr<JitCode> MakeDecodeAvx512(const PackedFormat& format) { return std::make_unique<DecodeAvx512>(format); }
std::unique_ptr<JitCode> MakeDecodeBf16Avx512(const PackedFormat& format) {
  return std::make_unique<DecodeBf16Avx512>(format);
}

}  // namespace thermocline
