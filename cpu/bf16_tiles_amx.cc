// GCC 12 takes its own headers' undefined registers for mistakes (gcc.gnu.org/PR105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "cpu/bf16_tiles.h"

namespace thermocline {
namespace {

__mmask16 First(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

}  // namespace

void FloatsToBf16(const float* x, int64_t k, int64_t end, uint8_t* out) {
  for (int64_t i = 0; i < end; i += 32) {
    const __m512 low = _mm512_maskz_loadu_ps(First(k - i), x + i);
    const __m512 high = _mm512_maskz_loadu_ps(First(k - i - 16), x + i + 16);
    _mm512_store_si512(out + 2 * i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
  }
}

}  // namespace thermocline
