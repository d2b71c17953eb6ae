// The vector type of AVX-512 that vector_ops_generic.h asks for.
#pragma once

#include "cpu/vector_ops_generic.h"

namespace thermocline {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  // 32 registers: 24 sums, 4 of K or V, 1 factor.
  static constexpr int kTileVectors = 4, kTileQueries = 6;

  static __mmask16 First(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static F Set(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static F Load(const float* p, int n) { return _mm512_maskz_loadu_ps(First(n), p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void Store(float* p, F x, int n) { _mm512_mask_storeu_ps(p, First(n), x); }

  static __m256i Load16(const uint16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m256i Load16(const uint16_t* p, int n) { return _mm256_maskz_loadu_epi16(First(n), p); }
  static F FromBf16(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
  static F LoadHalf(const uint16_t* p) { return _mm512_cvtph_ps(Load16(p)); }
  static F LoadHalf(const uint16_t* p, int n) { return _mm512_cvtph_ps(Load16(p, n)); }
  static F LoadBf16(const uint16_t* p) { return FromBf16(Load16(p)); }
  static F LoadBf16(const uint16_t* p, int n) { return FromBf16(Load16(p, n)); }
  static __m256i ToHalf(F x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static void StoreHalf(uint16_t* p, F x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ToHalf(x)); }
  static void StoreHalf(uint16_t* p, F x, int n) { _mm256_mask_storeu_epi16(p, First(n), ToHalf(x)); }

  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Neg(F x) { return _mm512_xor_ps(x, Set(-0.f)); }
  static F Abs(F x) { return _mm512_andnot_ps(Set(-0.f), x); }
  static F ZeroNan(F x) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x); }
  static F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F ScaleByPower(F x, F n) { return _mm512_scalef_ps(x, n); }
  static F Select(uint64_t bits, F a, F b) { return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), b, a); }

  static float First(F x) { return _mm512_cvtss_f32(x); }
  static float ReduceAdd(F x) { return _mm512_reduce_add_ps(x); }
  static float ReduceMax(F x) { return _mm512_reduce_max_ps(x); }

  static I LoadPairs(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static I LoadPairs(const int8_t* p, int n) {
    return _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((uint32_t{1} << 2 * n) - 1, p));  // n < 16
  }
  static I LoadPairs(const int16_t* p) { return _mm512_loadu_si512(p); }
  static I LoadPairs(const int16_t* p, int) { return LoadPairs(p); }  // a whole register is there
  static void StorePairs(int16_t* p, I even, I odd) {
    _mm512_storeu_si512(p, _mm512_mask_blend_epi16(0xAAAAAAAA, even, _mm512_slli_epi32(odd, 16)));
  }
  static I AbsHalves(const uint16_t* p) { return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(0x7FFF)); }
  static I AbsHalves(const uint16_t* p, int n) {
    return _mm512_and_si512(_mm512_maskz_loadu_epi16((uint32_t{1} << n) - 1, p), _mm512_set1_epi16(0x7FFF));
  }
  static I MaxHalves(I a, I b) { return _mm512_max_epi16(a, b); }
  static void StoreHalves(uint16_t* p, I x) { _mm512_storeu_si512(p, x); }
  static uint16_t ReduceMaxHalves(I x) {
    const __m256i max = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return MaxOf8(_mm_max_epi16(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1)));
  }
  static I DotPairs(I sum, I a, I b) {
    // Not the intrinsic: around it GCC 12 copies every sum to another register and back.
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
  }
  static void StoreS16(int16_t* p, I x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(x));
  }
  static I SetInt(int32_t x) { return _mm512_set1_epi32(x); }
  static F ToFloat(I x) { return _mm512_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm512_cvtps_epi32(x); }
  static I ZeroInt() { return _mm512_setzero_si512(); }
  static I AddInt(I a, I b) { return _mm512_add_epi32(a, b); }
  static int ReduceAddInt(I x) { return _mm512_reduce_add_epi32(x); }
  static I Times256(I x) { return _mm512_slli_epi32(x, 8); }
  static void StorePlanes(uint8_t* hi, uint8_t* lo, I q) {
    const I high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(hi), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lo), _mm512_cvtepi32_epi8(q));  // q - 256 * high, modulo 256
  }

  // (a, b) pairs by (cos, sin) pairs.
  static F Rotate(F x, F cos_sin) {
    const F swapped = _mm512_permute_ps(x, 0xB1);
    return _mm512_fmaddsub_ps(x, _mm512_moveldup_ps(cos_sin), _mm512_mul_ps(swapped, _mm512_movehdup_ps(cos_sin)));
  }
  static void Deinterleave(F front, F back, F& even, F& odd) {
    const I index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(front, index, back);
    odd = _mm512_permutex2var_ps(front, _mm512_add_epi32(index, _mm512_set1_epi32(1)), back);
  }
};

}  // namespace
}  // namespace thermocline
