#pragma once
// What quantizing is made of: operations on float32 that are never fused, and what is lost.
#include <algorithm>
#include <numeric>

#include "linear_blocks.h"

namespace vlmc {

constexpr float kTiny = 1.17549435e-38f;  // the smallest that has all its digits
constexpr float kShare = 0.97f;
constexpr float kMostHalf = 65504.0f;

// 16 numbers of a weight as a checkpoint has it, zeros but for `some`; uint16_t: bfloat16.
LANES_INLINE Floats numbers(const float* from, Mask some) { return load(some, from); }
LANES_INLINE Floats numbers(const uint16_t* from, Mask some) {
  return from_bfloat16(load_halves(some, from));
}

struct Sums {
  Doubles error, weight;
  Floats largest;
};

LANES_INLINE Doubles squares(Floats x, Doubles sum) {
  const Doubles low = to_doubles<0>(x), high = to_doubles<1>(x);
  return fmadd(high, high, fmadd(low, low, sum));
}

LANES_INLINE void count_loss(Floats restored, Floats weight, Sums* sums) {
  const Floats wrong = sub_rounded(restored, weight);
  sums->error = squares(wrong, sums->error);
  sums->weight = squares(weight, sums->weight);
  sums->largest = max(sums->largest, abs(wrong));
}

LANES_INLINE void write_loss(const Sums& sums, double* loss) {
  double error[8], weight[8];
  float largest[16];
  store(error, sums.error);
  store(weight, sums.weight);
  store(largest, sums.largest);
  loss[0] = std::accumulate(error, error + 8, 0.0);
  loss[1] = std::accumulate(weight, weight + 8, 0.0);
  loss[2] = *std::max_element(largest, largest + 16);
}

// quantize_blocks to 4 bits in panels; Number: float or uint16_t.
template <typename Number>
void quantize_panels(const Number* w, size_t rows, size_t columns, size_t block, uint8_t* codes,
                     uint16_t* scales, uint8_t* zero_points, float* restored, double* loss);

}  // namespace vlmc
