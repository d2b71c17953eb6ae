// The packers as one algorithm over a thin vector type V, compiled once per instruction set (pack_avx2.cc,
// pack_avx512.cc). Rows become lines by a transposition of 4-byte quads; what remains of taking a format apart works on
// whole lines, the same for all rows.
//
//   V::R                   a register; V::kRows output rows of a line
//   V::LoadLanes(p, step)  16 bytes from each of p, p + step, ... into its 128-bit lanes
//   V::Lo32, Hi32, Lo64, Hi64   interleave two registers within their lanes
//   V::Left, Right<n>      shift words of 16 bits
//
// Everything is in an anonymous namespace and calls nothing of the standard library, for the reason given in
// vector_ops_generic.h.
#pragma once

#include <immintrin.h>

#include "cpu/pack.h"

namespace thermocline {
namespace {

inline uint32_t Load32(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, 4);
  return v;
}

// Quads 0..3 of 16 bytes of V::kRows rows: quad[i] is that part of line i.
template <typename V>
void LoadQuads(const uint8_t* p, int64_t row_bytes, typename V::R quad[4]) {
  const auto row0 = V::LoadLanes(p, 4 * row_bytes), row1 = V::LoadLanes(p + row_bytes, 4 * row_bytes);
  const auto row2 = V::LoadLanes(p + 2 * row_bytes, 4 * row_bytes);
  const auto row3 = V::LoadLanes(p + 3 * row_bytes, 4 * row_bytes);
  const auto low01 = V::Lo32(row0, row1), low23 = V::Lo32(row2, row3);
  const auto high01 = V::Hi32(row0, row1), high23 = V::Hi32(row2, row3);
  quad[0] = V::Lo64(low01, low23);
  quad[1] = V::Hi64(low01, low23);
  quad[2] = V::Lo64(high01, high23);
  quad[3] = V::Hi64(high01, high23);
}

// Halves of 16 rows, row_bytes apart, side by side.
inline void CopyHalves(const uint8_t* p, int64_t row_bytes, uint8_t* out) {
  for (int r = 0; r < kPanelRows; ++r) __builtin_memcpy(out + 2 * r, p + r * row_bytes, 2);
}

// (16 rows, 16 bytes) to (16 bytes, 16 rows).
inline void TransposeBytes(const uint8_t* in, uint8_t* out) {
  __m128i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 16 * i));
  // Interleaving row i with row i + 8 rotates the index bits of (row, byte) by one; four times exchanges them.
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
      b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), a[i]);
}

template <typename V, int kShift>
void SwapBits(typename V::R& a, typename V::R& b, typename V::R mask) {
  const auto moved = V::And(V::Xor(V::template Right<kShift>(a), b), mask);
  b = V::Xor(b, moved);
  a = V::Xor(a, V::template Left<kShift>(moved));
}

// Byte by byte: bit g of line[q] becomes bit q of line[g].
template <typename V>
void TransposeBits(typename V::R line[8]) {
  for (int i = 0; i < 4; ++i) SwapBits<V, 4>(line[i], line[i + 4], V::Splat(0x0f));
  for (int i = 0; i < 8; i += 4)
    for (int j = i; j < i + 2; ++j) SwapBits<V, 2>(line[j], line[j + 2], V::Splat(0x33));
  for (int i = 0; i < 8; i += 2) SwapBits<V, 1>(line[i], line[i + 1], V::Splat(0x55));
}

// Byte by byte: bit pair g of line[q] becomes pair q of line[g].
template <typename V>
void TransposePairs(typename V::R line[4]) {
  for (int i = 0; i < 2; ++i) SwapBits<V, 4>(line[i], line[i + 2], V::Splat(0x0f));
  for (int i = 0; i < 4; i += 2) SwapBits<V, 2>(line[i], line[i + 1], V::Splat(0x33));
}

// The 32 high bits of a Q5 block, bit 4 q + j to bit 8 j + q: the index bits (q2 q1 q0 j1 j0) become (j1 j0 q2 q1 q0)
// by four exchanges.
inline uint32_t SpreadHighBits(uint32_t x) {
  const auto exchange = [&x](int distance, uint32_t mask) {
    const uint32_t moved = ((x >> distance) ^ x) & mask;
    x ^= moved ^ (moved << distance);
  };
  exchange(14, 0x0000cccc);
  exchange(7, 0x00aa00aa);
  exchange(2, 0x0c0c0c0c);
  exchange(1, 0x22222222);
  return x;
}

// Registers per line.
template <typename V>
constexpr int kParts = kPanelRows / V::kRows;

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: blocks of 64 from two groups each.
template <typename V, int kBits, bool kHasMin>
void PackSimple(const PackArgs& args) {
  constexpr int kHeader = kHasMin ? 4 : 2, kHigh = kBits == 5 ? 4 : 0;
  constexpr int kSourceBytes = kHeader + kHigh + (kBits == 8 ? 32 : 16);
  constexpr int kChunkBytes = 64 * kBits, kScaleBytes = kHasMin ? 128 : 64;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += 2 * kChunkBytes + kScaleBytes)
    for (int g = 0; g < 2; ++g) {
      const uint8_t* p = args.source + (2 * b + g) * kSourceBytes;
      uint8_t* chunk = out + g * kChunkBytes;
      for (int part = 0; part < kParts<V>; ++part)
        for (int half = 0; half < (kBits == 8 ? 2 : 1); ++half) {
          typename V::R quad[4];
          LoadQuads<V>(p + kHeader + kHigh + 16 * half + part * V::kRows * args.row_bytes, args.row_bytes, quad);
          for (int i = 0; i < 4; ++i)
            V::Store(chunk + 256 * half + 64 * i + 4 * V::kRows * part,
                     kBits == 8 ? V::Xor(quad[i], V::Splat(0x80)) : quad[i]);
        }
      if (kBits == 5) {
        uint32_t high[kPanelRows];
        for (int r = 0; r < kPanelRows; ++r) high[r] = Load32(p + kHeader + r * args.row_bytes);
        for (int r = 0; r < kPanelRows; ++r) high[r] = SpreadHighBits(high[r]);
        __builtin_memcpy(chunk + 256, high, 64);
      }
      CopyHalves(p, args.row_bytes, out + 2 * kChunkBytes + 32 * g);
      if (kHasMin) CopyHalves(p + 2, args.row_bytes, out + 2 * kChunkBytes + 64 + 32 * g);
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

template <typename V>
PackFn ChoosePackFn(DType source) {
  switch (source) {
    case DType::kQ4_0: return PackSimple<V, 4, false>;
    case DType::kQ4_1: return PackSimple<V, 4, true>;
    case DType::kQ5_0: return PackSimple<V, 5, false>;
    case DType::kQ5_1: return PackSimple<V, 5, true>;
    case DType::kQ8_0: return PackSimple<V, 8, false>;
    case DType::kQ4_K: return PackK45<V, 4>;
    case DType::kQ5_K: return PackK45<V, 5>;
    case DType::kQ6_K: return PackK6<V>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace thermocline
