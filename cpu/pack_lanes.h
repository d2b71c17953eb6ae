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

// Registers per line.
template <typename V>
constexpr int kParts = kPanelRows / V::kRows;

}  // namespace
}  // namespace thermocline
