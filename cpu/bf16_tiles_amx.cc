// GCC 12 takes its own headers' undefined registers for mistakes (gcc.gnu.org/PR105593).
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include "cpu/bf16_tiles.h"

namespace thermocline {
namespace {

// From 16 values of one k and 16 of the next to 16 pairs.
__m512i Interleave() {
  alignas(64) uint16_t index[32];
  for (uint16_t i = 0; i < 16; ++i) {
    index[2 * i] = i;
    index[2 * i + 1] = static_cast<uint16_t>(16 + i);
  }
  return _mm512_load_si512(index);
}

__m512i Bf16(__m512 high, __m512 low) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)); }

__mmask16 First(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

}  // namespace

void ChunksToBf16(const DecodedChunks& chunks, int64_t n, uint8_t* steps, int64_t step_bytes) {
  constexpr int kQuads = 8, kLine = 64;
  const __m512i interleave = Interleave(), byte = _mm512_set1_epi32(0xff);
  const __m512 minus_zero_point = _mm512_set1_ps(-chunks.zero_point);
  const int quads_per_group = kQuads / chunks.groups;
  for (int64_t c = 0; c < n; ++c) {
    const uint8_t* chunk = chunks.data + c * chunks.chunk_bytes;
    uint8_t* step = steps + c * step_bytes;
    __m512 scale{}, bias{};
    for (int q = 0; q < kQuads; ++q) {
      if (q % quads_per_group == 0) {
        const uint8_t* line = chunk + kLine * (kQuads + q / quads_per_group);
        scale = _mm512_load_ps(line);
        bias = chunks.has_min ? _mm512_load_ps(line + kLine * chunks.groups) : _mm512_mul_ps(scale, minus_zero_point);
      }
      const __m512i codes = _mm512_load_si512(chunk + kLine * q);
      const auto value = [&](__m512i code) { return _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), scale, bias); };
      const __m512 v0 = value(_mm512_and_si512(codes, byte));
      const __m512 v1 = value(_mm512_and_si512(_mm512_srli_epi32(codes, 8), byte));
      const __m512 v2 = value(_mm512_and_si512(_mm512_srli_epi32(codes, 16), byte));
      const __m512 v3 = value(_mm512_srli_epi32(codes, 24));
      _mm512_store_si512(step + 2 * kLine * q, _mm512_permutexvar_epi16(interleave, Bf16(v1, v0)));
      _mm512_store_si512(step + 2 * kLine * q + kLine, _mm512_permutexvar_epi16(interleave, Bf16(v3, v2)));
    }
  }
}

void FloatsToBf16(const float* x, int64_t k, int64_t end, uint8_t* out) {
  for (int64_t i = 0; i < end; i += 32) {
    const __m512 low = _mm512_maskz_loadu_ps(First(k - i), x + i);
    const __m512 high = _mm512_maskz_loadu_ps(First(k - i - 16), x + i + 16);
    _mm512_store_si512(out + 2 * i, Bf16(high, low));
  }
}

}  // namespace thermocline
