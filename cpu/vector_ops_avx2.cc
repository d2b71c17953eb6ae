#include "cpu/vector_ops_instance.h"

namespace thermocline {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  // 16 registers: 12 sums, 2 of K or V, 1 factor.
  static constexpr int kTileVectors = 2, kTileQueries = 6;

  static I Iota() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
  static I First(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), Iota()); }

  static F Set(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F Load(const float* p, int n) { return _mm256_maskload_ps(p, First(n)); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static void Store(float* p, F x, int n) { _mm256_maskstore_ps(p, First(n), x); }

  static __m128i Load16(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static __m128i Load16(const uint16_t* p, int n) {
    alignas(16) uint16_t first[kLanes] = {};
    for (int i = 0; i < n; ++i) first[i] = p[i];
    return Load16(first);
  }
  static F FromBf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static F LoadHalf(const uint16_t* p) { return _mm256_cvtph_ps(Load16(p)); }
  static F LoadHalf(const uint16_t* p, int n) { return _mm256_cvtph_ps(Load16(p, n)); }
  static F LoadBf16(const uint16_t* p) { return FromBf16(Load16(p)); }
  static F LoadBf16(const uint16_t* p, int n) { return FromBf16(Load16(p, n)); }
  static void StoreHalf(uint16_t* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static void StoreHalf(uint16_t* p, F x, int n) {
    uint16_t all[kLanes];
    StoreHalf(all, x);
    for (int i = 0; i < n; ++i) p[i] = all[i];
  }

  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Neg(F x) { return _mm256_xor_ps(x, Set(-0.f)); }
  static F Abs(F x) { return _mm256_andnot_ps(Set(-0.f), x); }
  static F ZeroNan(F x) { return _mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // In two steps, whose powers are normal numbers for all n in [-150, 128].
  static F ScaleByPower(F x, F n) {
    const I whole = _mm256_cvtps_epi32(n), part = _mm256_srai_epi32(whole, 1);
    const auto power = [](I k) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
    };
    return Mul(Mul(x, power(part)), power(_mm256_sub_epi32(whole, part)));
  }
  static F Select(uint64_t bits, F a, F b) {
    const I lane = _mm256_sllv_epi32(_mm256_set1_epi32(1), Iota());
    const I mine = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(mine, lane)));
  }

  static float First(F x) { return _mm256_cvtss_f32(x); }
  static float ReduceAdd(F x) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float ReduceMax(F x) {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
  }

  static I LoadPairs(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I LoadPairs(const int8_t* p, int n) {
    int8_t first[2 * kLanes] = {};
    for (int i = 0; i < 2 * n; ++i) first[i] = p[i];
    return LoadPairs(first);
  }
  static I LoadPairs(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static I LoadPairs(const int16_t* p, int) { return LoadPairs(p); }  // a whole register is there
  static void StorePairs(int16_t* p, I even, I odd) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA));
  }
  static I AbsHalves(const uint16_t* p) {
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_set1_epi16(0x7FFF));
  }
  static I AbsHalves(const uint16_t* p, int n) {
    uint16_t first[2 * kLanes] = {};
    for (int i = 0; i < n; ++i) first[i] = p[i];
    return AbsHalves(first);
  }
  static I MaxHalves(I a, I b) { return _mm256_max_epi16(a, b); }
  static void StoreHalves(uint16_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static uint16_t ReduceMaxHalves(I x) {
    return MaxOf8(_mm_max_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
  }
  static I DotPairs(I sum, I a, I b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static void StoreS16(int16_t* p, I x) {
    const __m128i low = _mm256_castsi256_si128(x), high = _mm256_extracti128_si256(x, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(low, high));
  }
  static I SetInt(int32_t x) { return _mm256_set1_epi32(x); }
  static F ToFloat(I x) { return _mm256_cvtepi32_ps(x); }
  static I ToInt(F x) { return _mm256_cvtps_epi32(x); }
  static I ZeroInt() { return _mm256_setzero_si256(); }
  static I AddInt(I a, I b) { return _mm256_add_epi32(a, b); }
  static I Times256(I x) { return _mm256_slli_epi32(x, 8); }
  static int ReduceAddInt(I x) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
  }
  static void StorePlanes(uint8_t* hi, uint8_t* lo, I q) {
    const I high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
    const I low = _mm256_sub_epi32(q, _mm256_slli_epi32(high, 8));
    // Per 128-bit half: 4 bytes of high, then 4 of low.
    const I bytes = _mm256_packs_epi16(_mm256_packs_epi32(high, low), _mm256_setzero_si256());
    const I ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m128i both = _mm256_castsi256_si128(ordered);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(hi), both);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(lo), _mm_unpackhi_epi64(both, both));
  }

  // (a, b) pairs by (cos, sin) pairs.
  static F Rotate(F x, F cos_sin) {
    const F swapped = _mm256_permute_ps(x, 0xB1);
    return _mm256_fmaddsub_ps(x, _mm256_moveldup_ps(cos_sin), _mm256_mul_ps(swapped, _mm256_movehdup_ps(cos_sin)));
  }
  static void Deinterleave(F front, F back, F& even, F& odd) {
    const auto order = [](F x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8)); };
    even = order(_mm256_shuffle_ps(front, back, 0x88));
    odd = order(_mm256_shuffle_ps(front, back, 0xDD));
  }
};

}  // namespace

const VectorOps kVectorOpsAvx2 = Table<Avx2>(Isa::kAvx2);

}  // namespace thermocline
