#pragma once
// Rotary embeddings of heads that lie packed, each head's first half turned against its second.
#include <cstddef>
#include <cstring>

#include "lanes.h"

namespace vlmc {

// Heads of one token, by cosines and sines [half].
LANES inline void turn(const float* x, size_t heads, size_t size, size_t half, const float* cos,
                       const float* sin, float* out) {
  for (size_t h = 0; h < heads; ++h, x += size, out += size) {
    for (size_t i = 0; i < half; i += 16) {
      const Mask there = first16(half - i);
      const Floats first = load(there, x + i);
      const Floats second = load(there, x + half + i);
      const Floats c = load(there, cos + i);
      const Floats s = load(there, sin + i);
      store(out + i, there, fmsub(first, c, mul(second, s)));
      store(out + half + i, there, fmadd(second, c, mul(first, s)));
    }
    std::memcpy(out + 2 * half, x + 2 * half, (size - 2 * half) * sizeof(float));
  }
}

}  // namespace vlmc
