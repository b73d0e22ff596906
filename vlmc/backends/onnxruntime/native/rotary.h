#pragma once
// Rotary embeddings of heads that lie packed, each head's first half turned against its second.
#include <cstddef>
#include <cstring>

#include "avx512.h"

namespace vlmc {

// Heads of one token, by cosines and sines [half].
AVX512 inline void turn(const float* x, size_t heads, size_t size, size_t half, const float* cos,
                        const float* sin, float* out) {
  for (size_t h = 0; h < heads; ++h, x += size, out += size) {
    for (size_t i = 0; i < half; i += 16) {
      const __mmask16 there = first16(half - i);
      const __m512 first = _mm512_maskz_loadu_ps(there, x + i);
      const __m512 second = _mm512_maskz_loadu_ps(there, x + half + i);
      const __m512 c = _mm512_maskz_loadu_ps(there, cos + i);
      const __m512 s = _mm512_maskz_loadu_ps(there, sin + i);
      _mm512_mask_storeu_ps(out + i, there,
                            _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
      _mm512_mask_storeu_ps(out + half + i, there,
                            _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
    }
    std::memcpy(out + 2 * half, x + 2 * half, (size - 2 * half) * sizeof(float));
  }
}

}  // namespace vlmc
