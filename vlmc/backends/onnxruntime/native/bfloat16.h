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

// Numbers that follow each other, in pairs: `to` may be `from`. What an odd count lacks is 0.
AVX512 inline void pair_up(const float* from, size_t count, float* to) {
  for (size_t i = 0; i < count; i += 16)
    _mm256_mask_storeu_epi32(to + i / 2, first16((count - i + 1) / 2),
                             to_bf16(_mm512_maskz_loadu_ps(first16(count - i), from + i)));
}

// bfloat16 of 16 numbers, one in each lane.
AVX512_INLINE __m512i lanes(__m512 x) {
  return _mm512_maskz_cvtepu16_epi32(0xffff, to_bf16(x));
}

// Rows 2 i and 2 i + 1 of `from`, number by number, in pairs: [ceil(count / 2)][size].
AVX512 inline void pair_rows(const float* from, size_t stride, size_t count, size_t size, float* to) {
  for (size_t t = 0; t < count; t += 2)
    for (size_t d = 0; d < size; d += 16) {
      const __mmask16 there = first16(size - d), also = t + 1 < count ? there : 0;
      const __m512 low = _mm512_maskz_loadu_ps(there, from + t * stride + d);
      const __m512 high = _mm512_maskz_loadu_ps(also, from + (t + 1) * stride + d);
      _mm512_mask_storeu_epi32(
          to + t / 2 * size + d, there,
          _mm512_or_si512(lanes(low), _mm512_maskz_slli_epi32(0xffff, lanes(high), 16)));
    }
}

}  // namespace vlmc
