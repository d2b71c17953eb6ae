// The packers of types with groups of 32, and the choice among all; pack_lanes.h says what V is.
#pragma once

#include "cpu/pack_k.h"

namespace thermocline {
namespace {

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

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL: blocks of 64 from two groups each.
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

// MXFP4: the same, with scales 2^(e - 128) as BF16.
template <typename V>
void PackMxfp4(const PackArgs& args) {
  constexpr int kSourceBytes = 17, kCodeBytes = 2 * 256;
  uint8_t* out = args.out;
  for (int64_t b = 0; b < args.n_blocks; ++b, out += kCodeBytes + 64)
    for (int g = 0; g < 2; ++g) {
      const uint8_t* p = args.source + (2 * b + g) * kSourceBytes;
      for (int part = 0; part < kParts<V>; ++part) {
        typename V::R quad[4];
        LoadQuads<V>(p + 1 + part * V::kRows * args.row_bytes, args.row_bytes, quad);
        for (int i = 0; i < 4; ++i) V::Store(out + 256 * g + 64 * i + 4 * V::kRows * part, quad[i]);
      }
      for (int r = 0; r < kPanelRows; ++r) {
        const int e = p[r * args.row_bytes];
        const auto scale = static_cast<uint16_t>(e < 2 ? 0x20 << e : (e - 1) << 7);
        __builtin_memcpy(out + kCodeBytes + 32 * g + 2 * r, &scale, 2);
      }
    }
}

template <typename V>
PackFn ChoosePackFn(DType source) {
  switch (source) {
    case DType::kIQ4_NL:
    case DType::kQ4_0: return PackSimple<V, 4, false>;
    case DType::kQ4_1: return PackSimple<V, 4, true>;
    case DType::kQ5_0: return PackSimple<V, 5, false>;
    case DType::kQ5_1: return PackSimple<V, 5, true>;
    case DType::kQ8_0: return PackSimple<V, 8, false>;
    case DType::kQ2_K: return PackK23<V, 2>;
    case DType::kQ3_K: return PackK23<V, 3>;
    case DType::kQ4_K: return PackK45<V, 4>;
    case DType::kQ5_K: return PackK45<V, 5>;
    case DType::kQ6_K: return PackK6<V>;
    case DType::kIQ4_XS: return PackIq4Xs<V>;
    case DType::kMXFP4: return PackMxfp4<V>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace thermocline
