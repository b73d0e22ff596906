#pragma once
// Weights in blocks, and their products with few tokens.
#include "kernels.h"

namespace vlmc {

struct BlockWeights {
  const uint8_t* codes;
  const float* scales;
  const uint8_t* zero_points;  // or null: the middle
  size_t block, blocks;        // blocks of a channel
};

inline BlockWeights blocks_of(const Product& product, size_t k, size_t block) {
  return {static_cast<const uint8_t*>(product.w), product.scales, product.zero_points, block,
          (k + block - 1) / block};
}

// linear_blocks of up to kFewTokens tokens.
void linear_blocks_few(const float* x, size_t m, size_t k, int bits, size_t block,
                       const Product* products, size_t count, Gate gate, const Parallel& parallel);

}  // namespace vlmc
