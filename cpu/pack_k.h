// The packers of types with blocks of 256; pack_lanes.h says what V is.
#pragma once

#include "cpu/pack_lanes.h"

namespace thermocline {
namespace {

// IQ4_XS.
template <typename V>
void PackIq4Xs(const PackArgs& args) {
  constexpr int kSourceBytes = 136, kCodeBytes = 8 * 256, kBlockBytes = kCodeBytes + 192;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += kBlockBytes) {
    const uint8_t* p = args.source + b * kSourceBytes;
    for (int part = 0; part < kParts<V>; ++part)
      for (int g = 0; g < 8; ++g) {
        typename V::R quad[4];
        LoadQuads<V>(p + 8 + 16 * g + part * V::kRows * args.row_bytes, args.row_bytes, quad);
        for (int i = 0; i < 4; ++i) V::Store(out + 256 * g + 64 * i + 4 * V::kRows * part, quad[i]);
      }
    for (int r = 0; r < kPanelRows; ++r) {
      const uint8_t* row = p + r * args.row_bytes;
      const uint32_t high = Load32(row) >> 16, low = Load32(row + 4);
      for (int g = 0; g < 8; ++g)
        out[kCodeBytes + 16 * g + r] = static_cast<uint8_t>((low >> 4 * g & 15) + (high >> 2 * g & 3) * 16 - 32);
    }
    CopyHalves(p, args.row_bytes, out + kCodeBytes + 128);
    __builtin_memset(out + kCodeBytes + 160, 0, 32);
  }
}

// 32 bytes of each row whose low nibbles are one run of 32 codes and whose high nibbles another: to the lines of both
// chunks, which hold k and k + 16 of their own run in a byte.
template <typename V>
void PackNibbles(const uint8_t* p, int64_t row_bytes, uint8_t* low_chunk, uint8_t* high_chunk) {
  typename V::R first[4], second[4];
  LoadQuads<V>(p, row_bytes, first);
  LoadQuads<V>(p + 16, row_bytes, second);
  const auto low = V::Splat(0x0f), high = V::Splat(0xf0);
  for (int i = 0; i < 4; ++i) {
    V::Store(low_chunk + 64 * i, V::Or(V::And(first[i], low), V::And(V::template Left<4>(second[i]), high)));
    V::Store(high_chunk + 64 * i, V::Or(V::And(V::template Right<4>(first[i]), low), V::And(second[i], high)));
  }
}

// Q2_K, Q3_K.
template <typename V, int kBits>
void PackK23(const PackArgs& args) {
  constexpr int kLow = kBits == 3 ? 32 : 16, kSourceBytes = kBits == 3 ? 110 : 84, kScales = kBits == 3 ? 96 : 0;
  constexpr int kChunkBytes = 64 * kBits, kCodeBytes = 8 * kChunkBytes, kBlockBytes = kCodeBytes + 320;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += kBlockBytes) {
    const uint8_t* p = args.source + b * kSourceBytes;
    for (int part = 0; part < kParts<V>; ++part) {
      const uint8_t* rows = p + part * V::kRows * args.row_bytes;
      uint8_t* lines = out + 4 * V::kRows * part;
      for (int run = 0; run < 4; ++run) {  // of 16 bytes: line run % 2 of the chunks of half run / 2
        typename V::R pairs[4];
        LoadQuads<V>(rows + kLow + 16 * run, args.row_bytes, pairs);
        TransposePairs<V>(pairs);
        for (int g = 0; g < 4; ++g) V::Store(lines + (run / 2 * 4 + g) * kChunkBytes + run % 2 * 64, pairs[g]);
      }
      if (kBits == 3) {
        typename V::R high[8];
        LoadQuads<V>(rows, args.row_bytes, high);
        LoadQuads<V>(rows + 16, args.row_bytes, high + 4);
        TransposeBits<V>(high);
        for (int g = 0; g < 8; ++g) V::Store(lines + g * kChunkBytes + 128, high[g]);
      }
    }
    // Q2_K's bytes are as they are to be; Q3_K has 16 scales of 6 bits, whose upper bits stand behind the lower ones.
    alignas(16) uint8_t sub[kPanelRows][16];
    for (int r = 0; r < kPanelRows; ++r) {
      const uint8_t* s = p + r * args.row_bytes + kScales;
      uint32_t words[4] = {Load32(s), Load32(s + 4), Load32(s + 8), kBits == 2 ? Load32(s + 12) : 0};
      if (kBits == 3) {
        const uint32_t high = words[2];
        words[2] = words[0] >> 4;
        words[3] = words[1] >> 4;
        // Less 32: 0..63 becomes -32..31, which turns bit 5 and repeats it in bits 6 and 7.
        for (int i = 0; i < 4; ++i) {
          const uint32_t six = (words[i] & 0x0f0f0f0f) | (high >> 2 * i & 0x03030303) << 4;
          const uint32_t sign = ~six & 0x20202020;
          words[i] = (six & 0x1f1f1f1f) | sign | sign << 1 | sign << 2;
        }
      }
      __builtin_memcpy(sub[r], words, 16);
    }
    TransposeBytes(sub[0], out + kCodeBytes);
    if (kBits == 3) {
      CopyHalves(p + 108, args.row_bytes, out + kCodeBytes + 256);
      __builtin_memset(out + kCodeBytes + 288, 0, 32);
    } else {
      CopyHalves(p + 80, args.row_bytes, out + kCodeBytes + 256);
      CopyHalves(p + 82, args.row_bytes, out + kCodeBytes + 288);
    }
  }
}

// Q4_K, Q5_K.
template <typename V, int kBits>
void PackK45(const PackArgs& args) {
  constexpr int kLow = kBits == 5 ? 48 : 16, kSourceBytes = kLow + 128;
  constexpr int kChunkBytes = 64 * kBits, kCodeBytes = 8 * kChunkBytes, kBlockBytes = kCodeBytes + 320;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += kBlockBytes) {
    const uint8_t* p = args.source + b * kSourceBytes;
    for (int part = 0; part < kParts<V>; ++part) {
      const uint8_t* rows = p + part * V::kRows * args.row_bytes;
      uint8_t* lines = out + 4 * V::kRows * part;
      for (int pair = 0; pair < 4; ++pair)
        PackNibbles<V>(rows + kLow + 32 * pair, args.row_bytes, lines + 2 * pair * kChunkBytes,
                       lines + (2 * pair + 1) * kChunkBytes);
      if (kBits == 5) {
        typename V::R high[8];
        LoadQuads<V>(rows + 16, args.row_bytes, high);
        LoadQuads<V>(rows + 32, args.row_bytes, high + 4);
        TransposeBits<V>(high);
        for (int g = 0; g < 8; ++g) V::Store(lines + g * kChunkBytes + 256, high[g]);
      }
    }
    // Per row 8 scales and 8 mins of 6 bits, whose upper bits stand above the first four of each.
    alignas(16) uint8_t sub[kPanelRows][16];
    for (int r = 0; r < kPanelRows; ++r) {
      const uint8_t* s = p + r * args.row_bytes + 4;
      const uint32_t s0 = Load32(s), s1 = Load32(s + 4), s2 = Load32(s + 8);
      const uint32_t words[4] = {s0 & 0x3f3f3f3f, (s2 & 0x0f0f0f0f) | (s0 >> 2 & 0x30303030), s1 & 0x3f3f3f3f,
                                 (s2 >> 4 & 0x0f0f0f0f) | (s1 >> 2 & 0x30303030)};
      __builtin_memcpy(sub[r], words, 16);
    }
    TransposeBytes(sub[0], out + kCodeBytes);
    CopyHalves(p, args.row_bytes, out + kCodeBytes + 256);
    CopyHalves(p + 2, args.row_bytes, out + kCodeBytes + 288);
  }
}

// Q6_K.
template <typename V>
void PackK6(const PackArgs& args) {
  constexpr int kSourceBytes = 210, kChunkBytes = 64 * 6, kCodeBytes = 8 * kChunkBytes, kBlockBytes = kCodeBytes + 320;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += kBlockBytes) {
    const uint8_t* p = args.source + b * kSourceBytes;
    for (int part = 0; part < kParts<V>; ++part)
      for (int half = 0; half < 2; ++half) {
        const uint8_t* rows = p + part * V::kRows * args.row_bytes;
        uint8_t* lines = out + 4 * half * kChunkBytes + 4 * V::kRows * part;
        for (int i = 0; i < 2; ++i)
          PackNibbles<V>(rows + 64 * half + 32 * i, args.row_bytes, lines + i * kChunkBytes,
                         lines + (i + 2) * kChunkBytes);
        for (int i = 0; i < 2; ++i) {
          typename V::R pairs[4];
          LoadQuads<V>(rows + 128 + 32 * half + 16 * i, args.row_bytes, pairs);
          TransposePairs<V>(pairs);
          for (int g = 0; g < 4; ++g) V::Store(lines + g * kChunkBytes + 256 + 64 * i, pairs[g]);
        }
      }
    alignas(16) uint8_t sub[kPanelRows][16];
    for (int r = 0; r < kPanelRows; ++r) __builtin_memcpy(sub[r], p + r * args.row_bytes + 192, 16);
    TransposeBytes(sub[0], out + kCodeBytes);
    CopyHalves(p + 208, args.row_bytes, out + kCodeBytes + 256);
    __builtin_memset(out + kCodeBytes + 288, 0, 32);
  }
}

}  // namespace
}  // namespace thermocline
