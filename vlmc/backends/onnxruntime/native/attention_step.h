#pragma once
// Attention of one new token a row, and how a cache is written.
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "lanes.h"

namespace vlmc {

// Numbers of `count` tokens into a cache.
LANES inline void append(const float* from, size_t stride, size_t count, size_t size, void* to,
                         bool half) {
  for (size_t t = 0; t < count; ++t, from += stride)
    for (size_t d = 0; d < size; d += 16) {
      const Mask there = first16(size - d);
      const Floats v = load(there, from + d);
      if (half)
        store_halves(static_cast<uint16_t*>(to) + t * size + d, there, to_half(v));
      else
        store(static_cast<float*>(to) + t * size + d, there, v);
    }
}

// cached_attention at step 1.
void step_attention(const AttentionShape& shape, size_t batch, size_t capacity, const float* query,
                    const float* key, const float* value, const int32_t* lengths, void* keys,
                    void* values, bool half, float* out, const Parallel& parallel);

}  // namespace vlmc
