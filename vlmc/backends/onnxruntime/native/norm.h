#pragma once
// A row of a sum of two values, and its norm.
#include <cmath>

#include "avx512.h"
#include "kernels.h"

namespace vlmc {

// body(i, mask, lane) for each 16 of k numbers, four of them in turn: sums of one lane wait for
// each other.
template <typename F>
AVX512_INLINE void by_lanes(size_t k, F&& body) {
  size_t i = 0;
  for (; i + 64 <= k; i += 64)
#pragma GCC unroll 4
    for (size_t lane = 0; lane < 4; ++lane) body(i + lane * 16, (__mmask16)0xffff, lane);
#pragma GCC unroll 4
  for (size_t lane = 0; lane < 4; ++lane, i += 16)
    if (i < k) body(i, first16(k - i), lane);
}

AVX512_INLINE float sum_of(const __m512 (&lanes)[4]) {
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(lanes[0], lanes[1]), _mm512_add_ps(lanes[2], lanes[3]));
  return _mm512_reduce_add_ps(sum);
}

template <bool Centered>
AVX512 inline void norm_row(const Norm& of, size_t row, size_t k, float* normed) {
  const float *x = of.x + row * k, *skip = of.skip + row * k;
  float* total = of.total + row * k;
  __m512 sums[4] = {};
  by_lanes(k, [&](size_t i, __mmask16 there, size_t lane) AVX512_LAMBDA {
    const __m512 sum =
        _mm512_add_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, skip + i));
    _mm512_mask_storeu_ps(total + i, there, sum);
    sums[lane] = Centered ? _mm512_add_ps(sum, sums[lane]) : _mm512_fmadd_ps(sum, sum, sums[lane]);
  });
  float mean = 0, square = sum_of(sums) / (float)k;
  if (Centered) {
    mean = square;
    __m512 squares[4] = {};
    by_lanes(k, [&](size_t i, __mmask16 there, size_t lane) AVX512_LAMBDA {
      const __m512 sum = _mm512_maskz_loadu_ps(there, total + i);
      const __m512 off = _mm512_maskz_sub_ps(there, sum, _mm512_set1_ps(mean));
      squares[lane] = _mm512_fmadd_ps(off, off, squares[lane]);
    });
    square = sum_of(squares) / (float)k;
  }
  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(square + of.epsilon));
  // A load that is masked out whole is slow where nothing lies.
  const float* beta = of.beta ? of.beta : of.gamma;
  const __mmask16 added = of.beta ? 0xffff : 0;
  by_lanes(k, [&](size_t i, __mmask16 there, size_t) AVX512_LAMBDA {
    __m512 v = _mm512_maskz_loadu_ps(there, total + i);
    if (Centered) v = _mm512_sub_ps(v, _mm512_set1_ps(mean));
    v = _mm512_mul_ps(v, scale);
    const __m512 by = _mm512_maskz_loadu_ps(there, of.gamma + i);
    v = _mm512_fmadd_ps(v, by, _mm512_maskz_loadu_ps(there & added, beta + i));
    _mm512_mask_storeu_ps(normed + i, there, v);
  });
}

inline void norm_row(const Norm& of, size_t row, size_t k, float* normed) {
  (of.centered ? norm_row<true> : norm_row<false>)(of, row, k, normed);
}

}  // namespace vlmc
