#pragma once
// Numbers rounded to bfloat16, two of them in the place of a float32.
//
// In assembly: only who knows that the CPU has AVX512_BF16 comes here, and the compiler lets no
// function that may use it share code with one that may not.
#include "avx512.h"

namespace vlmc {

// acc + the products of two bfloat16 in each lane.
AVX512_INLINE __m512 dot_pairs(__m512 acc, __m512 a, __m512 b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}

// 16 numbers as bfloat16, rounded to nearest even.
AVX512_INLINE __m256i to_bf16(__m512 x) {
  __m256i y;
  asm("vcvtneps2bf16 %1, %0" : "=v"(y) : "v"(x));
  return y;
}

// 32 numbers as bfloat16: those of `low` in the first 8 lanes, two in each, then those of `high`.
AVX512_INLINE __m512 pairs(__m512 low, __m512 high) {
  __m512 y;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(y) : "v"(low), "v"(high));
  return y;
}

// Of what `pairs` gives: number i of `low` and number i of `high` in lane i.
AVX512_INLINE __m512 interleaved(__m512 x) {
  const __m512i low = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i places = _mm512_or_si512(
      low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
  return _mm512_castsi512_ps(_mm512_permutexvar_epi16(places, _mm512_castps_si512(x)));
}

}  // namespace vlmc
