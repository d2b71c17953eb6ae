// GCC 12 takes its own headers' undefined registers for mistakes (gcc.gnu.org/PR105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "cpu/pack_generic.h"

namespace thermocline {
namespace {

struct Avx512 {
  using R = __m512i;
  static constexpr int kRows = 16;

  static __m128i Load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static R LoadLanes(const uint8_t* p, int64_t step) {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(Load16(p)), Load16(p + step), 1);
    const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(Load16(p + 2 * step)), Load16(p + 3 * step), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  static void Store(uint8_t* p, R x) { _mm512_store_si512(p, x); }
  static R Splat(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
  static R Lo32(R a, R b) { return _mm512_unpacklo_epi32(a, b); }
  static R Hi32(R a, R b) { return _mm512_unpackhi_epi32(a, b); }
  static R Lo64(R a, R b) { return _mm512_unpacklo_epi64(a, b); }
  static R Hi64(R a, R b) { return _mm512_unpackhi_epi64(a, b); }
  static R And(R a, R b) { return _mm512_and_si512(a, b); }
  static R Or(R a, R b) { return _mm512_or_si512(a, b); }
  static R Xor(R a, R b) { return _mm512_xor_si512(a, b); }
  template <int n>
  static R Left(R a) {
    return _mm512_slli_epi16(a, n);
  }
  template <int n>
  static R Right(R a) {
    return _mm512_srli_epi16(a, n);
  }
};

}  // namespace

PackFn PackFnAvx512(DType source) { return ChoosePackFn<Avx512>(source); }

}  // namespace thermocline
