#pragma once
// The exponential, and what gates are made of.
#include "avx512.h"
#include "kernels.h"

namespace vlmc {

// exp(x) for x <= 0, to 2 units in the last place (Cephes' polynomial); 0 far below.
AVX512_INLINE __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // the second of the two where one is no number
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

// 1 / x for 1 <= x <= 2^127, to 1e-7 of itself: a division would take as long as all of a gate.
AVX512_INLINE __m512 inverse(__m512 x) {
  const __m512 near = _mm512_rcp14_ps(x);
  return _mm512_fmadd_ps(_mm512_fnmadd_ps(x, near, _mm512_set1_ps(1.0f)), near, near);
}

// 1 / (1 + exp(-x)), of x > -20 to 1e-6 of itself.
AVX512_INLINE __m512 sigmoid(__m512 x) {
  // The second of two where one is no number.
  const __m512 top = _mm512_set1_ps(126.0f), by = _mm512_set1_ps(-1.44269504088896341f);
  const __m512 t = _mm512_min_ps(top, _mm512_mul_ps(x, by)), r = fraction(t);
  // 2^r, of least relative error between 0 and 1, 1 at 0.
  __m512 p = _mm512_set1_ps(1.86713017e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.01702978e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.57999127e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40164444e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93151295e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return inverse(_mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_scalef_ps(p, t)));
}

// erf(x) to 2e-7 (Abramowitz and Stegun 7.1.26).
AVX512_INLINE __m512 error_function(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 size = _mm512_min_ps(_mm512_set1_ps(1e9f), _mm512_abs_ps(x));
  const __m512 t = inverse(_mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), size, one));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 e = exponential(_mm512_mul_ps(_mm512_xor_ps(x, _mm512_set1_ps(-0.0f)), x));
  const __m512 y = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), e, one);
  return _mm512_or_ps(y, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
}

AVX512_INLINE __m512 activated(__m512 x, Gate gate) {
  if (gate == Gate::silu) return _mm512_mul_ps(x, sigmoid(x));
  if (gate == Gate::gelu_quick)
    return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(x, _mm512_set1_ps(1.702f))));
  if (gate == Gate::gelu) {
    const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    const __m512 erf = error_function(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678118654752f)));
    return _mm512_fmadd_ps(half, erf, half);
  }
  // tanh(u) = 2 sigmoid(2 u) - 1
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_mul_ps(x, _mm512_set1_ps(0.044715f)));
  return _mm512_mul_ps(
      x, sigmoid(_mm512_mul_ps(_mm512_set1_ps(1.5957691216057308f), _mm512_add_ps(x, cube))));
}

// y = activation(y) (* by, where there is one), for `count` numbers in each of m rows.
AVX512 inline void gate_rows(Gate gate, size_t m, size_t count, const float* by, size_t by_stride,
                             float* y, size_t stride) {
  for (size_t r = 0; r < m; ++r)
    for (size_t c = 0; c < count; c += 16) {
      const __mmask16 there = first16(count - c);
      const __m512 x = _mm512_maskz_loadu_ps(there, y + r * stride + c);
      __m512 v = activated(x, gate);
      if (by) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(there, by + r * by_stride + c));
      _mm512_mask_storeu_ps(y + r * stride + c, there, v);
    }
}

}  // namespace vlmc
