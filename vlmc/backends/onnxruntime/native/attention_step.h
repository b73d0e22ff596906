#pragma once
// Attention of one new token a row, and how a cache is written.
#include <cstddef>
#include <cstdint>

#include "avx512.h"
#include "kernels.h"

namespace vlmc {

// Numbers of `count` tokens into a cache.
AVX512 inline void append(const float* from, size_t stride, size_t count, size_t size, void* to,
                   bool half) {
  for (size_t t = 0; t < count; ++t, from += stride)
    for (size_t d = 0; d < size; d += 16) {
      const __mmask16 there = first16(size - d);
      const __m512 v = _mm512_maskz_loadu_ps(there, from + d);
      if (half)
        _mm256_mask_storeu_epi16(static_cast<uint16_t*>(to) + t * size + d, there,
                                 _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
      else
        _mm512_mask_storeu_ps(static_cast<float*>(to) + t * size + d, there, v);
    }
}

// cached_attention at step 1.
void step_attention(const AttentionShape& shape, size_t batch, size_t capacity, const float* query,
                    const float* key, const float* value, const int32_t* lengths, void* keys,
                    void* values, bool half, float* out, const Parallel& parallel);

}  // namespace vlmc
