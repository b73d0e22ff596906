#pragma once
// Weights in blocks, in panels of 16 channels: one lane of a vector each.
#include "kernels.h"
#include "lanes.h"

namespace vlmc {

constexpr size_t kLanes = 16;

// Channels of one panel.
struct BlockPanel {
  const uint8_t* codes;    // [blocks, block * bits / 32, 16, 4]
  const uint16_t* scales;  // float16 [blocks, 16]
  const uint8_t* zeros;    // [ceil(blocks / 2), 16], or null at 8 bits: 128
};

LANES_INLINE Floats scales_of(const BlockPanel& panel, size_t b) {
  return from_half(load_halves(panel.scales + b * kLanes));
}

// Zero points of block b, in 32 bits each.
template <int Bits>
LANES_INLINE Words zeros_of(const BlockPanel& panel, size_t b) {
  if (Bits == 8) return words(128);
  const __m128i two = _mm_loadu_si128((const __m128i*)(panel.zeros + b / 2 * kLanes));
  const Words both = to_words(two);
  return b % 2 ? shift_right(both, 4) : bit_and(both, words(15));
}

struct BlockPanels {
  BlockPanel first;
  size_t block, blocks;  // blocks of a channel
  size_t bytes;          // of a block of a panel's channels

  BlockPanels(const Product& product, size_t k, int bits, size_t block)
      : first{static_cast<const uint8_t*>(product.w), static_cast<const uint16_t*>(product.scales),
              product.zero_points},
        block(block),
        blocks((k + block - 1) / block),
        bytes(kLanes * block * (size_t)bits / 8) {}

  BlockPanel operator[](size_t panel) const {
    return {first.codes + panel * blocks * bytes, first.scales + panel * blocks * kLanes,
            first.zeros ? first.zeros + panel * ((blocks + 1) / 2) * kLanes : nullptr};
  }
};

// linear_blocks of up to kFewTokens tokens.
void linear_blocks_few(const float* x, size_t m, size_t k, int bits, size_t block,
                       const Product* products, size_t count, Gate gate, const Parallel& parallel);

}  // namespace vlmc
