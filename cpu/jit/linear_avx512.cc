// 16 output rows per zmm, one int32 lane each; vpdpbusd takes 4 k of all 16 rows from one register and the same 4 k of
// x broadcast from memory.
//
//   zmm0..7     sums, one per row of x
//   zmm8..15    the 8 quads of a chunk, unpacked once for all rows
//   zmm16..23   int32 dots: high and low plane of up to 4 rows at a time; scratch while unpacking
//   zmm24, 25   scale and min of the 16 output rows for the group at hand
//   zmm26, 27   masks 0x0f and the high bits' place
//   zmm28, 29   d and dmin of a super-block
//   zmm30       -zero_point
//
// M=1 is bound by memory: a chunk of Q4_0 is 288 bytes and about 45 instructions. Large M is bound by vpdpbusd, 2
// planes x 8 per chunk and row, against 6 instructions for the scales.
#include <algorithm>
#include <bit>

#include "cpu/jit/linear_jit.h"

namespace thermocline {
namespace {

using Xbyak::Zmm;

class LinearAvx512 final : public LinearJit {
 public:
  explicit LinearAvx512(const LinearSpec& spec) : LinearJit(spec, 1) {}

 private:
  // Ahead of the reads by 2 KiB: 32 instead of 29 GB/s from DRAM on two Xeon cores.
  static constexpr int kPrefetchBytes = 2048;
  static constexpr int kRowsAtOnce = 4;

  static Zmm Sum(int m) { return Zmm(m); }
  static Zmm Quad(int q) { return Zmm(8 + q); }
  static Zmm High(int i) { return Zmm(16 + i); }
  static Zmm Low(int i) { return Zmm(16 + kRowsAtOnce + i); }
  static Zmm Temp(int i) { return Zmm(16 + i); }
  const Zmm scale_ = zmm24, min_ = zmm25, nibble_mask_ = zmm26, high_mask_ = zmm27, d_ = zmm28, dmin_ = zmm29,
            neg_zero_point_ = zmm30;
  Xbyak::Label nibble_data_, high_data_, zero_point_data_;

  void Constants() override {
    vpbroadcastd(nibble_mask_, ptr[rip + nibble_data_]);
    vpbroadcastd(high_mask_, ptr[rip + high_data_]);
    vpbroadcastd(neg_zero_point_, ptr[rip + zero_point_data_]);
  }

  void Data() override {
    align(4);
    L(nibble_data_);
    dd(0x0f0f0f0f);
    L(high_data_);
    dd(format().bits == 6 ? 0x30303030 : 0x10101010);
    L(zero_point_data_);
    dd(std::bit_cast<uint32_t>(static_cast<float>(-format().zero_point)));
  }

  void ZeroSums() override {
    for (int i = 0; i < m(); ++i) vpxord(Sum(i), Sum(i), Sum(i));
  }

  void BeginBlock() override {
    vcvtph2ps(d_, ptr[super_scales(0)]);
    if (format().has_min) {
      vcvtph2ps(dmin_, ptr[super_scales(32)]);
      vpxord(min_, min_, min_);
      vsubps(dmin_, min_, dmin_);
    }
  }

  void Unpack(int chunk) {
    const int base = chunk * format().chunk_bytes();
    for (int line = 0; line < format().bits; ++line) prefetcht0(ptr[codes(base + 64 * line + kPrefetchBytes)]);
    if (format().bits == 8) {
      for (int q = 0; q < 8; ++q) vmovdqa64(Quad(q), ptr[codes(base + 64 * q)]);
      return;
    }
    for (int i = 0; i < 4; ++i) {
      vmovdqa64(Quad(i), ptr[codes(base + 64 * i)]);
      vpsrlw(Quad(i + 4), Quad(i), 4);
      vpandd(Quad(i), Quad(i), nibble_mask_);
      vpandd(Quad(i + 4), Quad(i + 4), nibble_mask_);
    }
    if (format().bits == 5) {
      vmovdqa64(Temp(0), ptr[codes(base + 256)]);
      for (int q = 0; q < 8; ++q) OrHighBits(q, Temp(0), 4 - q);
    } else if (format().bits == 6) {
      for (int i = 0; i < 2; ++i) {
        vmovdqa64(Temp(i), ptr[codes(base + 256 + 64 * i)]);
        for (int j = 0; j < 4; ++j) OrHighBits(4 * i + j, Temp(i), 4 - 2 * j);
      }
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
    if (f16_scales()) {
      vcvtph2ps(scale_, ptr[scales(32 * chunk)]);
      if (format().has_min)
        vcvtph2ps(min_, ptr[scales(64 + 32 * chunk)]);
      else
        vmulps(min_, scale_, neg_zero_point_);
      return;
    }
    if (format().scale == ScaleKind::kF16xS8)
      vpmovsxbd(scale_, ptr[scales(kPanelRows * group)]);
    else
      vpmovzxbd(scale_, ptr[scales(kPanelRows * group)]);
    vcvtdq2ps(scale_, scale_);
    vmulps(scale_, scale_, d_);
    if (format().has_min) {
      vpmovzxbd(min_, ptr[scales(kPanelRows * (format().block_k() / format().group + group))]);
      vcvtdq2ps(min_, min_);
      vmulps(min_, min_, dmin_);
    } else {
      vmulps(min_, scale_, neg_zero_point_);
    }
  }

  void Chunk(int chunk) override {
    Unpack(chunk);
    const int quads = 8 / groups_per_chunk();
    for (int group = 0; group < groups_per_chunk(); ++group) {
      LoadScales(chunk, group);
      for (int first = 0; first < m(); first += kRowsAtOnce)
        Rows(chunk, group, quads, first, std::min(kRowsAtOnce, m() - first));
    }
  }

  void Rows(int chunk, int group, int quads, int first, int count) {
    for (int i = 0; i < count; ++i) {
      vpxord(High(i), High(i), High(i));
      vpxord(Low(i), Low(i), Low(i));
    }
    for (int q = group * quads; q < (group + 1) * quads; ++q)
      for (int i = 0; i < count; ++i) {
        vpdpbusd(High(i), Quad(q), ptr_b[x(first + i, 64 * chunk + 4 * q)]);
        vpdpbusd(Low(i), Quad(q), ptr_b[x(first + i, 64 * chunk + 32 + 4 * q)]);
      }
    const int meta_offset = chunk * static_cast<int>(sizeof(ActivationMeta));
    const int sum_offset =
        format().group == 32 ? offsetof(ActivationMeta, sum32) : offsetof(ActivationMeta, sum16) + 4 * group;
    for (int i = 0; i < count; ++i) {
      vpslld(High(i), High(i), 8);
      vpaddd(Low(i), Low(i), High(i));
      vcvtdq2ps(Low(i), Low(i));
      vmulps(Low(i), Low(i), ptr_b[meta(first + i, meta_offset + offsetof(ActivationMeta, scale))]);
      vfmadd231ps(Sum(first + i), Low(i), scale_);
      vfmadd231ps(Sum(first + i), min_, ptr_b[meta(first + i, meta_offset + sum_offset)]);
    }
  }

  void StoreSums() override {
    Xbyak::Label overwrite, done;
    cmp(accumulate(), 0);
    je(overwrite, T_NEAR);
    ForEachOutputRow([&](int i) {
      vaddps(Sum(i), Sum(i), ptr[y_row(0)]);
      vmovups(ptr[y_row(0)], Sum(i));
    });
    jmp(done, T_NEAR);
    L(overwrite);
    ForEachOutputRow([&](int i) { vmovups(ptr[y_row(0)], Sum(i)); });
    L(done);
  }
};

}  // namespace

std::unique_ptr<LinearJit> MakeLinearAvx512(const LinearSpec& spec) { return std::make_unique<LinearAvx512>(spec); }

}  // namespace thermocline
