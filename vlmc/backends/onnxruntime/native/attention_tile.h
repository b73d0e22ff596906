#pragma once
// Products of a few query rows with whole panels of keys, and what is largest in them.
#include <cstddef>

#include "bfloat16.h"
#include "float_tile.h"
#include "lanes.h"

namespace vlmc {

// scores[R][panels * kPanel], rows `width` apart, of keys [panels][inner][kPanel]; tops[R][16]: the
// larger of what they are and of these, by lanes, while they are in registers. Of Pairs, each
// element of queries and keys is two bfloat16.
template <size_t R, bool Pairs>
LANES void score_panels(const float* queries, size_t room, const float* keys, size_t inner,
                        size_t panels, float* scores, size_t width, float* tops) {
  constexpr size_t V = kAbreast;
  for (; panels; --panels, scores += kPanel, keys += inner * kPanel)
    for (size_t first = 0; first < kPanel; first += kWide) {
      Floats acc[R][V];
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j) acc[r][j] = floats(0);
      const float* key = keys + first;
      for (size_t i = 0; i < inner; ++i, key += kPanel) {
        Floats v[V];
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j) v[j] = load(key + j * 16);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r) {
          const Floats x = floats(queries[r * room + i]);
#pragma GCC unroll 4
          for (size_t j = 0; j < V; ++j) acc[r][j] = multiply_add<Pairs>(x, v[j], acc[r][j]);
        }
      }
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j) store(scores + r * width + first + j * 16, acc[r][j]);
        Floats top = acc[r][0];
#pragma GCC unroll 4
        for (size_t j = 1; j < V; ++j) top = max(top, acc[r][j]);
        store(tops + r * 16, max(load(tops + r * 16), top));
      }
    }
}

using Score = void (*)(const float*, size_t, const float*, size_t, size_t, float*, size_t, float*);
template <bool Pairs>
constexpr Score kScores[kTile] = {score_panels<1, Pairs>, score_panels<2, Pairs>,
                                  score_panels<3, Pairs>, score_panels<4, Pairs>,
                                  score_panels<5, Pairs>, score_panels<6, Pairs>};

}  // namespace vlmc
