// A sum of two values and its root mean square norm.
#include "avx512.h"
#include "kernels.h"
#include "scratch.h"

#include <algorithm>
#include <cmath>

namespace vlmc {
namespace {

AVX512 void row(const float* x, const float* skip, const float* gamma, float epsilon, size_t k,
                float* total, float* normed) {
  __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (size_t i = 0; i < k; i += 16) {
    const __mmask16 there = first16(k - i);
    const __m512 sum =
        _mm512_add_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, skip + i));
    _mm512_mask_storeu_ps(total + i, there, sum);
    squares[i / 16 % 2] = _mm512_fmadd_ps(sum, sum, squares[i / 16 % 2]);
  }
  const float mean = _mm512_reduce_add_ps(_mm512_add_ps(squares[0], squares[1])) / (float)k;
  const __m512 scale = _mm512_set1_ps(1 / std::sqrt(mean + epsilon));
  for (size_t i = 0; i < k; i += 16) {
    const __mmask16 there = first16(k - i);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, total + i), scale);
    _mm512_mask_storeu_ps(normed + i, there,
                          _mm512_mul_ps(v, _mm512_maskz_loadu_ps(there, gamma + i)));
  }
}

}  // namespace

void add_norm(const float* x, const float* skip, const float* gamma, float epsilon, size_t m,
              size_t k, float* total, float* normed, const Parallel& parallel) {
  constexpr size_t kRows = 16;  // of a task
  each(parallel, (m + kRows - 1) / kRows, [&](size_t task) {
    for (size_t i = task * kRows; i < std::min(m, (task + 1) * kRows); ++i)
      row(x + i * k, skip + i * k, gamma, epsilon, k, total + i * k, normed + i * k);
  });
}

}  // namespace vlmc
