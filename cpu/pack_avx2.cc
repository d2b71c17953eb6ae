#include "cpu/pack_generic.h"

namespace thermocline {
namespace {

struct Avx2 {
  using R = __m256i;
  static constexpr int kRows = 8;

  static __m128i Load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static R LoadLanes(const uint8_t* p, int64_t step) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(Load16(p)), Load16(p + step), 1);
  }
  static void Store(uint8_t* p, R x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static R Splat(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
  static R Lo32(R a, R b) { return _mm256_unpacklo_epi32(a, b); }
  static R Hi32(R a, R b) { return _mm256_unpackhi_epi32(a, b); }
  static R Lo64(R a, R b) { return _mm256_unpacklo_epi64(a, b); }
  static R Hi64(R a, R b) { return _mm256_unpackhi_epi64(a, b); }
  static R And(R a, R b) { return _mm256_and_si256(a, b); }
  static R Or(R a, R b) { return _mm256_or_si256(a, b); }
  static R Xor(R a, R b) { return _mm256_xor_si256(a, b); }
  template <int n>
  static R Left(R a) {
    return _mm256_slli_epi16(a, n);
  }
  template <int n>
  static R Right(R a) {
    return _mm256_srli_epi16(a, n);
  }
};

}  // namespace

PackFn PackFnAvx2(DType source) { return ChoosePackFn<Avx2>(source); }

}  // namespace thermocline
