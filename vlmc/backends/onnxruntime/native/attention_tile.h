#pragma once
// Products of a few query rows with whole panels of keys, and what is largest in them.
#include <cstddef>

#include "avx512.h"
#include "bfloat16.h"
#include "float_tile.h"

namespace vlmc {

// scores[R][panels * kPanel], rows `width` apart, of keys [panels][inner][kPanel]; tops[R][16]: the
// larger of what they are and of these, by lanes, while they are in registers. Of Pairs, each
// element of queries and keys is two bfloat16.
template <size_t R, bool Pairs>
AVX512 void score_panels(const float* queries, size_t room, const float* keys, size_t inner,
                         size_t panels, float* scores, size_t width, float* tops) {
  constexpr size_t V = kPanel / 16;
  for (; panels; --panels, scores += kPanel) {
    __m512 acc[R][V];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) acc[r][j] = _mm512_setzero_ps();
    for (size_t i = 0; i < inner; ++i, keys += kPanel) {
      __m512 v[V];
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) v[j] = _mm512_loadu_ps(keys + j * 16);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        const __m512 x = _mm512_set1_ps(queries[r * room + i]);
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j)
          acc[r][j] = Pairs ? dot_pairs(acc[r][j], x, v[j]) : _mm512_fmadd_ps(x, v[j], acc[r][j]);
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) _mm512_storeu_ps(scores + r * width + j * 16, acc[r][j]);
      const __m512 left = _mm512_max_ps(acc[r][0], acc[r][1]);
      const __m512 right = _mm512_max_ps(acc[r][2], acc[r][3]);
      const __m512 top = _mm512_max_ps(left, right);
      _mm512_storeu_ps(tops + r * 16, _mm512_max_ps(_mm512_loadu_ps(tops + r * 16), top));
    }
  }
}

using Score = void (*)(const float*, size_t, const float*, size_t, size_t, float*, size_t, float*);
template <bool Pairs>
constexpr Score kScores[kTile] = {score_panels<1, Pairs>, score_panels<2, Pairs>,
                                  score_panels<3, Pairs>, score_panels<4, Pairs>,
                                  score_panels<5, Pairs>, score_panels<6, Pairs>};

}  // namespace vlmc
