#pragma once
// From scores of a query row to weights of values.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "avx512.h"
#include "bfloat16.h"

namespace vlmc {

// Scores are in base 2: what makes them, multiplies by this, and no exponential has to.
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0, 0 far below. To one unit in the last place; of what is Rounded to bfloat16 next,
// to 3e-6 of itself.
template <bool Rounded>
AVX512_INLINE __m512 power(__m512 x) {
  const __m512 r = fraction(x);
  // Of least relative error between 0 and 1, 1 at 0.
  __m512 p = _mm512_set1_ps(Rounded ? 1.34266857e-2f : 2.16129163e-4f);
  if (!Rounded) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.24678458e-3f));
  if (!Rounded) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.67545155e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 5.22424728e-2f : 5.54852821e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 2.41280213e-1f : 2.40229309e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(Rounded ? 6.93044841e-1f : 6.93147063e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // by 2 to the power of what is whole in x
}

// The keys that a query row sees.
struct Span {
  uint32_t from, to;
};

// The keys start .. stop that some of several rows see; all of them see whole .. part. All but
// `stop` are multiples of 16.
struct Range {
  size_t start, whole, part, stop;
};

// Which of 16 keys are seen.
AVX512_INLINE __mmask16 seen16(Span seen, __m512i keys) {
  const __mmask16 before_end = _mm512_cmplt_epu32_mask(keys, _mm512_set1_epi32(seen.to));
  return _mm512_mask_cmpge_epu32_mask(before_end, keys, _mm512_set1_epi32(seen.from));
}

// Keys at .. at + 15.
AVX512_INLINE __m512i keys16(size_t at) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_set1_epi32(at), lanes);
}

// tops[R]: the larger of what they are and of scores of keys from .. to, by lanes. Of Hidden, some
// row does not see some key.
template <size_t R, bool Hidden>
AVX512_INLINE void raise(const float* scores, size_t width, const Span* seen, size_t from,
                         size_t to, __m512 (&tops)[R]) {
  for (size_t t = from; t < to; t += 16)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512 x = _mm512_loadu_ps(scores + r * width + t);
      tops[r] = Hidden ? _mm512_mask_max_ps(tops[r], seen16(seen[r], keys16(t)), tops[r], x)
                       : _mm512_max_ps(tops[r], x);
    }
}

// 2^(score - top) in place; of Hidden, 0 where a key is not seen.
template <size_t R, bool Hidden, bool Pairs>
AVX512_INLINE void weigh(float* scores, size_t width, const Span* seen, size_t from, size_t to,
                         const __m512 (&tops)[R], __m512 (&sums)[R]) {
  for (size_t t = from; t < to; t += 16)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      float* row = scores + r * width;
      __m512 e = power<Pairs>(_mm512_sub_ps(_mm512_loadu_ps(row + t), tops[r]));
      if (Hidden) e = _mm512_maskz_mov_ps(seen16(seen[r], keys16(t)), e);
      sums[r] = _mm512_add_ps(sums[r], e);
      if (Pairs)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + t / 2), to_bf16(e));
      else
        _mm512_storeu_ps(row + t, e);
    }
}

// 2^(score - the row's largest) of scores[R][width] in place, of Pairs as bfloat16 from the row's
// front on; 0 for what is hidden, and for up to 15 numbers behind the last. tops[R]: the largest;
// sums[R]: of what comes out. known[R][16]: the largest of keys whole .. part, by lanes, or null.
// All rows at once: what one waits for, others do.
template <size_t R, bool Pairs>
AVX512 void softmax(float* scores, size_t width, const Span* seen, Range keys, const float* known,
                    float* tops, float* sums) {
  __m512 top[R], sum[R];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
    top[r] = known ? _mm512_loadu_ps(known + r * 16) : _mm512_set1_ps(-INFINITY);
  raise<R, true>(scores, width, seen, keys.start, keys.whole, top);
  if (!known) raise<R, false>(scores, width, seen, keys.whole, keys.part, top);
  raise<R, true>(scores, width, seen, keys.part, keys.stop, top);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) {
    tops[r] = _mm512_reduce_max_ps(top[r]);
    // Nothing may be seen: the sum stays 0 and the row's answer is zeros.
    top[r] = _mm512_set1_ps(tops[r] == -INFINITY ? 0.0f : tops[r]);
    sum[r] = _mm512_setzero_ps();
  }
  weigh<R, true, Pairs>(scores, width, seen, keys.start, keys.whole, top, sum);
  weigh<R, false, Pairs>(scores, width, seen, keys.whole, keys.part, top, sum);
  weigh<R, true, Pairs>(scores, width, seen, keys.part, keys.stop, top, sum);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) sums[r] = _mm512_reduce_add_ps(sum[r]);
}

using Softmax = void (*)(float*, size_t, const Span*, Range, const float*, float*, float*);
template <bool Pairs>
constexpr Softmax kSoftmax[] = {softmax<1, Pairs>, softmax<2, Pairs>, softmax<3, Pairs>,
                                softmax<4, Pairs>, softmax<5, Pairs>, softmax<6, Pairs>};

AVX512 inline void cap_scores(float* row, size_t count, float cap) {
  for (size_t i = 0; i < count; ++i) row[i] = cap * std::tanh(row[i] / cap);
}

}  // namespace vlmc
