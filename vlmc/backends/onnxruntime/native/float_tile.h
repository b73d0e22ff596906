#pragma once
// Products of small matrices, of float32 or of pairs of bfloat16, the sums in registers.
#include <cstddef>
#include <cstdint>

#include "bfloat16.h"
#include "lanes.h"

namespace vlmc {

constexpr size_t kTile = 6;  // rows that are multiplied together

// How weights lie in memory.
enum class Stored { float32, float16, bfloat16 };
constexpr size_t size_of(Stored as) { return as == Stored::float32 ? 4 : 2; }

LANES_INLINE Floats load(const void* from, Stored as, size_t at, Mask there) {
  if (as == Stored::float32) return load(there, static_cast<const float*>(from) + at);
  const __m256i halves = load_halves(there, static_cast<const uint16_t*>(from) + at);
  return as == Stored::float16 ? from_half(halves) : from_bfloat16(halves);
}
LANES_INLINE Floats load(const void* from, bool half, size_t at, Mask there) {
  return load(from, half ? Stored::float16 : Stored::float32, at, there);
}

// c[R][count] = a[R][inner] b[inner][count] (+ c), 16 (V - 1) < count <= 16 V. Of Pairs, each
// element of a and b is two bfloat16. beside(row): before a row of b is read.
template <size_t R, size_t V, bool Pairs, typename Beside>
LANES_INLINE void tile_beside(const float* a, size_t lda, const float* b, size_t ldb, size_t inner,
                              float* c, size_t ldc, size_t count, bool onto, Beside&& beside) {
  Floats acc[R][V];
  const Mask last = first16(count - (V - 1) * 16);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      acc[r][j] = onto ? load(j + 1 < V ? 0xffff : last, c + r * ldc + j * 16) : floats(0);
  for (size_t i = 0; i < inner; ++i) {
    beside(b + i * ldb);
    Floats v[V];
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j) v[j] = load(j + 1 < V ? 0xffff : last, b + i * ldb + j * 16);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const Floats x = floats(a[r * lda + i]);
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) acc[r][j] = multiply_add<Pairs>(x, v[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      store(c + r * ldc + j * 16, j + 1 < V ? 0xffff : last, acc[r][j]);
}

template <size_t R, size_t V, bool Pairs>
LANES void tile(const float* a, size_t lda, const float* b, size_t ldb, size_t inner, float* c,
                size_t ldc, size_t count, bool onto) {
  tile_beside<R, V, Pairs>(a, lda, b, ldb, inner, c, ldc, count, onto, [](const float*) {});
}

// V of a tile of V vectors, where as many fit.
constexpr size_t abreast(size_t vectors) { return vectors < kAbreast ? vectors : kAbreast; }
constexpr size_t kWide = kAbreast * 16;  // columns of a tile

using Tile = void (*)(const float*, size_t, const float*, size_t, size_t, float*, size_t, size_t,
                      bool);
template <size_t R, bool Pairs>
constexpr Tile kTilesOf[4] = {tile<R, abreast(1), Pairs>, tile<R, abreast(2), Pairs>,
                              tile<R, abreast(3), Pairs>, tile<R, abreast(4), Pairs>};
template <bool Pairs>
constexpr const Tile* kTiles[kTile] = {kTilesOf<1, Pairs>, kTilesOf<2, Pairs>, kTilesOf<3, Pairs>,
                                       kTilesOf<4, Pairs>, kTilesOf<5, Pairs>, kTilesOf<6, Pairs>};

// c[rows][count] = a[rows][inner] b[inner][count] (+ c), rows <= kTile, count <= kPanel.
template <bool Pairs = false>
inline void multiply(size_t rows, const float* a, size_t lda, const float* b, size_t ldb,
                     size_t inner, float* c, size_t ldc, size_t count, bool onto) {
  for (size_t j = 0; j < count; j += kWide) {
    const size_t some = count - j < kWide ? count - j : kWide;
    kTiles<Pairs>[rows - 1][(some + 15) / 16 - 1](a, lda, b + j, ldb, inner, c + j, ldc, some,
                                                  onto);
  }
}

LANES_INLINE void transpose(Floats* v) {
  Floats t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = unpack_low(v[i], v[i + 1]);
    t[i + 1] = unpack_high(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = shuffle<0x44>(t[i], t[i + 2]);
    v[i + 1] = shuffle<0xee>(t[i], t[i + 2]);
    v[i + 2] = shuffle<0x44>(t[i + 1], t[i + 3]);
    v[i + 3] = shuffle<0xee>(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Floats a = shuffle_fours<0x44>(v[j], v[4 + j]);
    const Floats b = shuffle_fours<0x44>(v[8 + j], v[12 + j]);
    const Floats c = shuffle_fours<0xee>(v[j], v[4 + j]);
    const Floats d = shuffle_fours<0xee>(v[8 + j], v[12 + j]);
    t[j] = shuffle_fours<0x88>(a, b);
    t[4 + j] = shuffle_fours<0xdd>(a, b);
    t[8 + j] = shuffle_fours<0x88>(c, d);
    t[12 + j] = shuffle_fours<0xdd>(c, d);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Rows first .. last of a matrix, `size` numbers each from `from` + row * stride on, transposed:
// [panels][64 / kWide][size][kWide], zeros behind the last.
LANES inline void pack_panels(const void* from, Stored as, size_t stride, size_t first, size_t last,
                              size_t size, float* out) {
  for (size_t p = first; p < last; p += kPanel, out += size * kPanel)
    for (size_t t = 0; t < kPanel; t += 16)
      for (size_t d = 0; d < size; d += 16) {
        const Mask there = first16(size - d);
        Floats v[16];
        for (size_t j = 0; j < 16; ++j)
          v[j] = p + t + j < last ? load(from, as, (p + t + j) * stride + d, there) : floats(0);
        transpose(v);
        float* const strip = out + t / kWide * size * kWide + t % kWide;
        for (size_t j = 0; j < 16 && d + j < size; ++j) store(strip + (d + j) * kWide, v[j]);
      }
}

}  // namespace vlmc
