#pragma once
// From scores of a query row to weights of values.
#include <cmath>
#include <cstddef>

#include "avx512.h"
#include "bfloat16.h"

namespace vlmc {

// Scores are in base 2: what makes them, multiplies by this, and no exponential has to.
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0, 0 far below. To one unit in the last place; of what is Rounded to bfloat16 next, to
// 3e-6 of itself.
template <bool Rounded>
AVX512_INLINE __m512 power(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);  // the second of the two where one is no number
  const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
  // Of least relative error between -1/2 and 1/2, 1 at 0.
  __m512 p = _mm512_set1_ps(Rounded ? 9.58285294e-3f : 1.53533620e-4f);
  if (!Rounded) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.33988750e-3f));
  if (!Rounded) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61843692e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 5.59064262e-2f : 5.55033237e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 2.40240991e-1f : 2.40226477e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 6.93124175e-1f : 6.93147182e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 2^(row - its largest) in place, of Pairs as bfloat16 and 0 behind an odd count; returns the sum.
// `top` is told the largest. Four at a time: what one waits for, others do.
template <bool Pairs>
AVX512 float softmax(float* row, size_t count, float* top_seen = nullptr) {
  const size_t whole = count / 64 * 64;
  __m512 top[4], sum[4];
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) top[j] = _mm512_set1_ps(-INFINITY), sum[j] = _mm512_setzero_ps();
  for (size_t i = 0; i < whole; i += 64)
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j)
      top[j] = _mm512_max_ps(top[j], _mm512_loadu_ps(row + i + j * 16));
  for (size_t i = whole; i < count; i += 16)
    top[0] = _mm512_mask_max_ps(top[0], first16(count - i), top[0],
                                _mm512_maskz_loadu_ps(first16(count - i), row + i));
  const float largest = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(top[0], top[1]), _mm512_max_ps(top[2], top[3])));
  if (top_seen) *top_seen = largest;
  // Nothing may be seen: the sum stays 0 and the row's answer is zeros.
  const __m512 zero = _mm512_set1_ps(largest == -INFINITY ? 0.0f : largest);
  for (size_t i = 0; i < whole; i += 64) {
    __m512 e[4];
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) e[j] = _mm512_loadu_ps(row + i + j * 16);
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      e[j] = power<Pairs>(_mm512_sub_ps(e[j], zero));
      sum[j] = _mm512_add_ps(sum[j], e[j]);
    }
#pragma GCC unroll 4
    for (size_t j = 0; j < 4; ++j) {
      if (Pairs)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + i / 2 + j * 8), to_bf16(e[j]));
      else
        _mm512_storeu_ps(row + i + j * 16, e[j]);
    }
  }
  for (size_t i = whole; i < count; i += 16) {
    const __mmask16 there = first16(count - i);
    const __m512 x = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, row + i), zero);
    const __m512 e = _mm512_maskz_mov_ps(there, power<Pairs>(x));
    sum[0] = _mm512_add_ps(sum[0], e);
    if (Pairs)
      _mm256_mask_storeu_epi32(row + i / 2, first16((count - i + 1) / 2), to_bf16(e));
    else
      _mm512_mask_storeu_ps(row + i, there, e);
  }
  return _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(sum[0], sum[1]), _mm512_add_ps(sum[2], sum[3])));
}

AVX512 inline void cap_scores(float* row, size_t count, float cap) {
  for (size_t i = 0; i < count; ++i) row[i] = cap * std::tanh(row[i] / cap);
}

}  // namespace vlmc
