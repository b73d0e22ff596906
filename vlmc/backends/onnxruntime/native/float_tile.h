#pragma once
// Products of small matrices, of float32 or of pairs of bfloat16, the sums in registers; AVX-512.
#include <cstddef>
#include <cstdint>

#include "avx512.h"
#include "bfloat16.h"

namespace vlmc {

constexpr size_t kTile = 6;  // rows that are multiplied together

AVX512_INLINE __m512 load(const void* from, bool half, size_t at, __mmask16 there) {
  if (half)
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, static_cast<const uint16_t*>(from) + at));
  return _mm512_maskz_loadu_ps(there, static_cast<const float*>(from) + at);
}

// c[R][count] = a[R][inner] b[inner][count] (+ c), 16 (V - 1) < count <= 16 V. Of Pairs, each
// element of a and b is two bfloat16. beside(row): before a row of b is read.
template <size_t R, size_t V, bool Pairs, typename Beside>
AVX512_INLINE void tile_beside(const float* a, size_t lda, const float* b, size_t ldb, size_t inner,
                               float* c, size_t ldc, size_t count, bool onto, Beside&& beside) {
  __m512 acc[R][V];
  const __mmask16 last = first16(count - (V - 1) * 16);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      acc[r][j] = onto ? _mm512_maskz_loadu_ps(j + 1 < V ? 0xffff : last, c + r * ldc + j * 16)
                       : _mm512_setzero_ps();
  for (size_t i = 0; i < inner; ++i) {
    beside(b + i * ldb);
    __m512 v[V];
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      v[j] = _mm512_maskz_loadu_ps(j + 1 < V ? 0xffff : last, b + i * ldb + j * 16);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(a[r * lda + i]);
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j)
        acc[r][j] = Pairs ? dot_pairs(acc[r][j], x, v[j]) : _mm512_fmadd_ps(x, v[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      _mm512_mask_storeu_ps(c + r * ldc + j * 16, j + 1 < V ? 0xffff : last, acc[r][j]);
}

template <size_t R, size_t V, bool Pairs>
AVX512 void tile(const float* a, size_t lda, const float* b, size_t ldb, size_t inner, float* c,
                 size_t ldc, size_t count, bool onto) {
  tile_beside<R, V, Pairs>(a, lda, b, ldb, inner, c, ldc, count, onto, [](const float*) {});
}

using Tile = void (*)(const float*, size_t, const float*, size_t, size_t, float*, size_t, size_t,
                      bool);
template <size_t R, bool Pairs>
constexpr Tile kTilesOf[4] = {tile<R, 1, Pairs>, tile<R, 2, Pairs>, tile<R, 3, Pairs>,
                              tile<R, 4, Pairs>};
template <bool Pairs>
constexpr const Tile* kTiles[kTile] = {kTilesOf<1, Pairs>, kTilesOf<2, Pairs>, kTilesOf<3, Pairs>,
                                       kTilesOf<4, Pairs>, kTilesOf<5, Pairs>, kTilesOf<6, Pairs>};

// c[rows][count] = a[rows][inner] b[inner][count] (+ c), rows <= kTile, count <= kPanel.
template <bool Pairs = false>
inline void multiply(size_t rows, const float* a, size_t lda, const float* b, size_t ldb,
                     size_t inner, float* c, size_t ldc, size_t count, bool onto) {
  kTiles<Pairs>[rows - 1][(count + 15) / 16 - 1](a, lda, b, ldb, inner, c, ldc, count, onto);
}

AVX512_INLINE void transpose(__m512* v) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    v[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    v[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    v[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 a = _mm512_shuffle_f32x4(v[j], v[4 + j], 0x44);
    const __m512 b = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0x44);
    const __m512 c = _mm512_shuffle_f32x4(v[j], v[4 + j], 0xee);
    const __m512 d = _mm512_shuffle_f32x4(v[8 + j], v[12 + j], 0xee);
    t[j] = _mm512_shuffle_f32x4(a, b, 0x88);
    t[4 + j] = _mm512_shuffle_f32x4(a, b, 0xdd);
    t[8 + j] = _mm512_shuffle_f32x4(c, d, 0x88);
    t[12 + j] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Rows first .. last of a matrix, `size` numbers each from `from` + row * stride on, transposed:
// [panels][size][64], zeros behind the last.
AVX512 inline void pack_panels(const void* from, bool half, size_t stride, size_t first,
                               size_t last, size_t size, float* out) {
  for (size_t p = first; p < last; p += kPanel, out += size * kPanel)
    for (size_t t = 0; t < kPanel; t += 16)
      for (size_t d = 0; d < size; d += 16) {
        const __mmask16 there = first16(size - d);
        __m512 v[16];
        for (size_t j = 0; j < 16; ++j)
          v[j] = p + t + j < last ? load(from, half, (p + t + j) * stride + d, there)
                                  : _mm512_setzero_ps();
        transpose(v);
        for (size_t j = 0; j < 16 && d + j < size; ++j)
          _mm512_storeu_ps(out + (d + j) * kPanel + t, v[j]);
      }
}

}  // namespace vlmc
