#pragma once
// What quantizing is made of: operations on float32 that are never fused, and what is lost.
#include <algorithm>
#include <numeric>

#include "linear_blocks.h"

namespace vlmc {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
constexpr float kTiny = 1.17549435e-38f;  // the smallest that has all its digits
constexpr float kShare = 0.97f;
constexpr float kMostHalf = 65504.0f;

AVX512_INLINE __m512 mul(__m512 a, __m512 b) { return _mm512_mul_round_ps(a, b, kNearest); }
AVX512_INLINE __m512 add(__m512 a, __m512 b) { return _mm512_add_round_ps(a, b, kNearest); }
AVX512_INLINE __m512 sub(__m512 a, __m512 b) { return _mm512_sub_round_ps(a, b, kNearest); }

// 16 numbers of a weight as a checkpoint has it, zeros but for `some`; uint16_t: bfloat16, the upper
// half of a float32.
AVX512_INLINE __m512 numbers(const float* from, __mmask16 some) {
  return _mm512_maskz_loadu_ps(some, from);
}
AVX512_INLINE __m512 numbers(const uint16_t* from, __mmask16 some) {
  const __m512i halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

struct Sums {
  __m512d error, weight;
  __m512 largest;
};

AVX512_INLINE __m512d squares(__m512 x, __m512d sum) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
  const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
  return _mm512_fmadd_pd(high, high, _mm512_fmadd_pd(low, low, sum));
}

AVX512_INLINE void count_loss(__m512 restored, __m512 weight, Sums* sums) {
  const __m512 wrong = sub(restored, weight);
  sums->error = squares(wrong, sums->error);
  sums->weight = squares(weight, sums->weight);
  sums->largest = _mm512_max_ps(sums->largest, _mm512_abs_ps(wrong));
}

AVX512_INLINE void write_loss(const Sums& sums, double* loss) {
  double error[8], weight[8];
  float largest[16];
  _mm512_storeu_pd(error, sums.error);
  _mm512_storeu_pd(weight, sums.weight);
  _mm512_storeu_ps(largest, sums.largest);
  loss[0] = std::accumulate(error, error + 8, 0.0);
  loss[1] = std::accumulate(weight, weight + 8, 0.0);
  loss[2] = *std::max_element(largest, largest + 16);
}

// quantize_blocks to 4 bits in panels; Number: float or uint16_t.
template <typename Number>
void quantize_panels(const Number* w, size_t rows, size_t columns, size_t block, uint8_t* codes,
                     uint16_t* scales, uint8_t* zero_points, float* restored, double* loss);

}  // namespace vlmc
