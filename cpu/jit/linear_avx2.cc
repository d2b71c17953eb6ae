// Packed panels with AVX2 or AVX-VNNI, for few rows, and their decoding. 8 output rows per ymm, one int32 lane each: a
// panel is two halves. With one or two rows of x both halves are done at once; more need the registers, and walk the
// panel twice.
//
//   ymm0..3     sums, of each row of x and half
//   ymm4..11    dots in the same order, of the hi plane, then of the lo plane (16 or 32 bits, see cpu/jit/dot_avx2.h)
//   ymm12, 13   codes of one quad of each half; then scale and min
//   ymm14       4 values of x in every lane
//   ymm15       scratch
//
// M=1 is bound by memory: a chunk of Q4_0 is 288 bytes and about 105 micro-ops for 3 vector ports.
#include "cpu/jit/dot_avx2.h"

namespace thermocline {
namespace {

using Xbyak::Ymm;

// Codes and scales of a chunk in registers.
class PanelAvx2 : public PanelJit {
 protected:
  PanelAvx2(const LinearSpec& spec, int passes, int frame_bytes)
      : PanelJit(spec, passes, kOwnFrameBytes + frame_bytes) {}

  static constexpr int kPrefetchL2Bytes = 8192, kPrefetchL1Bytes = 1536;  // as in linear_avx512.cc
  static constexpr int kDAt = 0, kDminAt = 64, kOwnFrameBytes = 128;      // in the frame: d and -dmin as floats

  int halves() const { return rows_per_pass() / 8; }
  // Of a half's first output row, in what has so many bytes per row.
  int HalfOffset(int half, int bytes_per_row) const { return (pass() * rows_per_pass() + 8 * half) * bytes_per_row; }
  const Ymm temp_ = ymm15;
  Xbyak::Label low_data_, high_data_, codebook_data_, scale_data_;

  void Fill(Xbyak::Label& label, uint32_t value) {
    align(32);
    L(label);
    for (int i = 0; i < 8; ++i) dd(value);
  }
  void Data() override {
    Fill(low_data_, format().bits < 4 ? 0x03030303 : 0x0f0f0f0f);
    Fill(high_data_, format().bits == 3 ? 0x04040404 : format().bits == 6 ? 0x30303030 : 0x10101010);
    Fill(scale_data_, 15);
    if (!format().codebook) return;
    L(codebook_data_);
    for (const uint8_t code : *format().codebook) db(code);
  }

  void BeginBlock() override {
    for (int h = 0; h < halves(); ++h) {
      vcvtph2ps(temp_, ptr[super_scales(HalfOffset(h, 2))]);
      vmovaps(ptr[frame(kDAt + 32 * h)], temp_);
      if (!format().has_min) continue;
      vcvtph2ps(temp_, ptr[super_scales(32 + HalfOffset(h, 2))]);
      vxorps(ymm14, ymm14, ymm14);
      vsubps(temp_, ymm14, temp_);
      vmovaps(ptr[frame(kDminAt + 32 * h)], temp_);
    }
  }

  void LoadScales(const Ymm& scale, const Ymm& min, int chunk, int group, int half) {
    if (format().scale == ScaleKind::kBF16) {
      vpmovzxwd(scale, ptr[scales(32 * chunk + HalfOffset(half, 2))]);
      vpslld(scale, scale, 16);
      return;
    }
    if (format().scale == ScaleKind::kF16) {
      vcvtph2ps(scale, ptr[scales(32 * chunk + HalfOffset(half, 2))]);
      if (format().has_min) vcvtph2ps(min, ptr[scales(64 + 32 * chunk + HalfOffset(half, 2))]);
      return;
    }
    const int in_pair = chunk * groups_per_chunk() + group, n_groups = format().block_k() / format().group;
    const auto sub = ptr[scales(kPanelRows * in_pair + HalfOffset(half, 1))];
    if (format().scale == ScaleKind::kF16xS8)
      vpmovsxbd(scale, sub);
    else
      vpmovzxbd(scale, sub);
    if (format().scale == ScaleKind::kF16xU4) {
      vpsrld(min, scale, 4);
      vpand(scale, scale, ptr[rip + scale_data_]);
    } else if (format().has_min) {
      vpmovzxbd(min, ptr[scales(kPanelRows * (n_groups + in_pair) + HalfOffset(half, 1))]);
    }
    vcvtdq2ps(scale, scale);
    vmulps(scale, scale, ptr[frame(kDAt + 32 * half)]);
    if (!format().has_min) return;
    vcvtdq2ps(min, min);
    vmulps(min, min, ptr[frame(kDminAt + 32 * half)]);
  }

  void LoadQuad(const Ymm& to, int chunk, int q, int half) {
    const int offset = HalfOffset(half, 4);
    if (format().bits == 8) {
      vmovdqa(to, ptr[codes(chunk, 64 * q + offset)]);
      return;
    }
    const bool pairs = format().bits < 4;  // in the low plane
    const int shift = pairs ? 2 * (q % 4) : q / 4 * 4;
    vmovdqa(to, ptr[codes(chunk, 64 * (pairs ? q / 4 : q % 4) + offset)]);
    if (shift > 0) vpsrlw(to, to, shift);
    vpand(to, to, ptr[rip + low_data_]);
    if (format().codebook) {
      vbroadcasti128(temp_, ptr[rip + codebook_data_]);
      vpshufb(to, temp_, to);
    }
    const int low_bits = pairs ? 2 : 4;
    if (format().bits == low_bits) return;
    const int line = format().bits == 6 ? q / 4 : 0;
    const int left = low_bits - (format().bits == 6 ? 2 * (q % 4) : q);
    vmovdqa(temp_, ptr[codes(chunk, 64 * (low_bits + line) + offset)]);
    // What a shift of words moves between bytes falls outside the mask.
    if (left > 0) vpsllw(temp_, temp_, left);
    if (left < 0) vpsrlw(temp_, temp_, -left);
    vpand(temp_, temp_, ptr[rip + high_data_]);
    vpor(to, to, temp_);
  }

  void Prefetch(int chunk) {
    if (pass() > 0 || cached()) return;
    for (int line = 0; line < format().bits; ++line) {
      prefetcht1(ptr[codes(chunk, 64 * line + kPrefetchL2Bytes)]);
      prefetcht0(ptr[codes(chunk, 64 * line + kPrefetchL1Bytes)]);
    }
  }
};

class LinearAvx2 final : public PanelAvx2 {
 public:
  LinearAvx2(const LinearSpec& spec, bool vnni)
      : PanelAvx2(spec, spec.m <= 2 ? 1 : 2, kMyFrameBytes), step_(StepFor(*spec.format, vnni)) {}

 private:
  static constexpr int kMaxOutputs = 4;                                                  // registers of them
  static constexpr int kWideAt = kOwnFrameBytes, kWordsAt = kWideAt + 32 * kMaxOutputs;  // in the frame
  static constexpr int kMyFrameBytes = (32 + 64) * kMaxOutputs;

  int Output(int i, int half) const { return i * halves() + half; }
  Ymm Sum(int i, int half) const { return Ymm(Output(i, half)); }
  Ymm Dot(int plane, int i, int half) const { return Ymm(4 + 4 * plane + Output(i, half)); }
  static Ymm Codes(int half) { return Ymm(12 + half); }
  const Ymm x_quad_ = ymm14, scale_ = ymm12, min_ = ymm13;
  Xbyak::Label ones_data_, times_256_data_, low_bytes_data_, high_bytes_data_;

  void Data() override {
    PanelAvx2::Data();
    Fill(ones_data_, 0x00010001);
    Fill(times_256_data_, 0x01000100);
    Fill(low_bytes_data_, 0x00ff00ff);
    Fill(high_bytes_data_, 0xff00ff00);
  }

  template <typename Emit>
  void ForEachOutput(const Emit& emit) {
    for (int i = 0; i < m(); ++i)
      for (int h = 0; h < halves(); ++h) emit(i, h);
  }

  void BeginPanel() override {
    Xbyak::Label done;
    ForEachOutput([&](int i, int h) { vxorps(Sum(i, h), Sum(i, h), Sum(i, h)); });
    cmp(accumulate(), 0);
    je(done);
    ForEachOutputRow([&](int i) {
      for (int h = 0; h < halves(); ++h) vmovups(Sum(i, h), ptr[y_row(HalfOffset(h, sizeof(float)))]);
    });
    L(done);
  }

  void EndPanel() override {
    ForEachOutputRow([&](int i) {
      for (int h = 0; h < halves(); ++h) vmovups(ptr[y_row(HalfOffset(h, sizeof(float)))], Sum(i, h));
    });
  }

  void Chunk(int chunk) override {
    Prefetch(chunk);
    if (step_ == DotStep::kWords)
      for (int i = 0; i < m(); ++i)
        EmitWordsOfX(*this, x(i, QuadOffset(chunk, 0, 0)), frame(kWordsAt + 64 * i), frame(kWordsAt + 64 * i + 32),
                     ptr[rip + high_bytes_data_]);
    for (int group = 0; group < groups_per_chunk(); ++group) {
      Dots(chunk, group);
      for (int h = 0; h < halves(); ++h) {
        LoadScales(scale_, min_, chunk, group, h);
        for (int i = 0; i < m(); ++i) AddToSum(i, h, chunk, group);
      }
    }
  }

  // Dot(0, i, h) = the group's exact dot, but for the zero point.
  void Dots(int chunk, int group) {
    const int quads = 8 / groups_per_chunk(), per_flush = step_ == DotStep::kMaddubs ? QuadsPerFlush(format()) : quads;
    if (step_ == DotStep::kVnni)
      for (int plane = 0; plane < 2; ++plane)
        ForEachOutput([&](int i, int h) { vpxor(Dot(plane, i, h), Dot(plane, i, h), Dot(plane, i, h)); });
    for (int j = 0; j < quads; ++j) {
      Quad(chunk, group * quads + j, j % per_flush == 0);
      const bool last = j + 1 == quads;
      if (step_ == DotStep::kMaddubs && (last || (j + 1) % per_flush == 0)) Flush(j < per_flush, last);
    }
    if (step_ == DotStep::kVnni)
      ForEachOutput([&](int i, int h) {
        vpslld(Dot(0, i, h), Dot(0, i, h), 8);
        vpaddd(Dot(0, i, h), Dot(0, i, h), Dot(1, i, h));
      });
  }

  void Quad(int chunk, int q, bool first) {
    const bool words = step_ == DotStep::kWords;
    for (int plane = 0; plane < 2; ++plane) {
      for (int h = 0; h < halves() && (words || plane == 0); ++h) {
        LoadQuad(Codes(h), chunk, q, h);
        if (words) EmitWordsOfCodes(*this, Codes(h), plane == 1, ptr[rip + low_bytes_data_]);
      }
      for (int i = 0; i < m(); ++i) {
        vpbroadcastd(x_quad_, words ? ptr[frame(kWordsAt + 64 * i + 32 * plane + 4 * q)]
                                    : ptr[x(i, QuadOffset(chunk, plane, q))]);
        for (int h = 0; h < halves(); ++h)
          EmitStep(*this, step_, Dot(words ? 0 : plane, i, h), Codes(h), x_quad_, temp_,
                   first && !(words && plane == 1));
      }
    }
  }

  // Both planes' 16-bit sums into 32 bits; those of a group with several flushes meet in the frame.
  void Flush(bool first, bool last) {
    ForEachOutput([&](int i, int h) {
      const Ymm hi = Dot(0, i, h), lo = Dot(1, i, h);
      const auto wide = ptr[frame(kWideAt + 32 * Output(i, h))];
      vpmaddwd(hi, hi, ptr[rip + times_256_data_]);
      vpmaddwd(lo, lo, ptr[rip + ones_data_]);
      vpaddd(hi, hi, lo);
      if (!first) vpaddd(hi, hi, wide);
      if (!last) vmovdqa(wide, hi);
    });
  }

  void AddToSum(int i, int half, int chunk, int group) {
    const Ymm dot = Dot(0, i, half);
    const auto meta = [&](size_t offset) { return ptr[x(i, MetaOffset(chunk) + static_cast<int>(offset))]; };
    if (!format().has_min) {
      vpbroadcastd(temp_, meta(CorrectionOffset(group)));
      if (CorrectionShift() > 0) vpslld(temp_, temp_, CorrectionShift());
      if (CorrectionShift() < 0) vpsrad(temp_, temp_, -CorrectionShift());
      vpaddd(dot, dot, temp_);
    }
    vcvtdq2ps(dot, dot);
    vbroadcastss(temp_, meta(offsetof(ActivationMeta, scale)));
    vmulps(dot, dot, temp_);
    vfmadd231ps(Sum(i, half), dot, scale_);
    if (format().has_min) {
      vbroadcastss(temp_, meta(SumOffset(group)));
      vfmadd231ps(Sum(i, half), min_, temp_);
    }
  }

  const DotStep step_;
};

class DecodeAvx2 final : public PanelAvx2 {
 public:
  explicit DecodeAvx2(const PackedFormat& format) : PanelAvx2({&format, 0}, 1, 0) {}

 private:
  void Chunk(int chunk) override {
    const int base = chunk * DecodedChunkBytes(format());
    Prefetch(chunk);
    for (int h = 0; h < 2; ++h) {
      for (int q = 0; q < 8; ++q) {
        const Ymm codes(q);
        LoadQuad(codes, chunk, q, h);
        vmovdqa(ptr[y() + (base + 64 * q + 32 * h)], codes);
      }
      for (int group = 0; group < groups_per_chunk(); ++group) {
        LoadScales(ymm8, ymm9, chunk, group, h);
        vmovaps(ptr[y() + (base + 512 + 64 * group + 32 * h)], ymm8);
        if (format().has_min) vmovaps(ptr[y() + (base + 512 + 64 * (groups_per_chunk() + group) + 32 * h)], ymm9);
      }
    }
  }
  void EndPair() override { add(y(), 2 * DecodedChunkBytes(format())); }
};

}  // namespace

std::unique_ptr<JitCode> MakeLinearAvx2(const LinearSpec& spec, bool vnni) {
  return std::make_unique<LinearAvx2>(spec, vnni);
}
std::unique_ptr<JitCode> MakeDecodeAvx2(const PackedFormat& format) { return std::make_unique<DecodeAvx2>(format); }

}  // namespace thermocline
