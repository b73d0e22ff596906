#pragma once
// A row of a sum of two values, and its norm.
#include <cmath>

#include "kernels.h"
#include "lanes.h"

namespace vlmc {

// body(i, mask, lane) for each 16 of k numbers, four of them in turn: sums of one lane wait for
// each other.
template <typename F>
LANES_INLINE void by_lanes(size_t k, F&& body) {
  size_t i = 0;
  for (; i + 64 <= k; i += 64)
#pragma GCC unroll 4
    for (size_t lane = 0; lane < 4; ++lane) body(i + lane * 16, (Mask)0xffff, lane);
#pragma GCC unroll 4
  for (size_t lane = 0; lane < 4; ++lane, i += 16)
    if (i < k) body(i, first16(k - i), lane);
}

LANES_INLINE float sum_of(const Floats (&lanes)[4]) {
  const Floats sum = add(add(lanes[0], lanes[1]), add(lanes[2], lanes[3]));
  return reduce_add(sum);
}

template <bool Centered>
LANES inline void norm_row(const Norm& of, size_t row, size_t k, float* normed) {
  const float *x = of.x + row * k, *skip = of.skip + row * k;
  float* total = of.total + row * k;
  Floats sums[4] = {};
  by_lanes(k, [&](size_t i, Mask there, size_t lane) LANES_LAMBDA {
    const Floats sum = add(load(there, x + i), load(there, skip + i));
    store(total + i, there, sum);
    sums[lane] = Centered ? add(sum, sums[lane]) : fmadd(sum, sum, sums[lane]);
  });
  float mean = 0, square = sum_of(sums) / (float)k;
  if (Centered) {
    mean = square;
    Floats squares[4] = {};
    by_lanes(k, [&](size_t i, Mask there, size_t lane) LANES_LAMBDA {
      const Floats sum = load(there, total + i);
      const Floats off = sub(there, sum, floats(mean));
      squares[lane] = fmadd(off, off, squares[lane]);
    });
    square = sum_of(squares) / (float)k;
  }
  const Floats scale = floats(1 / std::sqrt(square + of.epsilon));
  // A load that is masked out whole is slow where nothing lies.
  const float* beta = of.beta ? of.beta : of.gamma;
  const Mask added = of.beta ? 0xffff : 0;
  by_lanes(k, [&](size_t i, Mask there, size_t) LANES_LAMBDA {
    Floats v = load(there, total + i);
    if (Centered) v = sub(v, floats(mean));
    v = mul(v, scale);
    const Floats by = load(there, of.gamma + i);
    v = fmadd(v, by, load(there & added, beta + i));
    store(normed + i, there, v);
  });
}

inline void norm_row(const Norm& of, size_t row, size_t k, float* normed) {
  (of.centered ? norm_row<true> : norm_row<false>)(of, row, k, normed);
}

}  // namespace vlmc
