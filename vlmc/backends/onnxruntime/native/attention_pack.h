#pragma once
// Queries, keys and values of one head as products read them: of Pairs, two numbers as bfloat16 in
// the place of one.
#include <algorithm>
#include <cstddef>

#include "bfloat16.h"
#include "float_tile.h"
#include "lanes.h"

namespace vlmc {

// Keys or values of one head: element (t, d) lies at `from`[t * stride + d].
struct Head {
  const void* from;
  size_t stride;
  bool half;

  const char* row(size_t t) const { return static_cast<const char*>(from) + t * stride * width(); }
  size_t width() const { return half ? 2 : 4; }
};

// Of heads that lie side by side, each row is on a page of its own: no hardware foresees the next.
LANES_INLINE void ask(const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64)
    _mm_prefetch(static_cast<const char*>(from) + i, _MM_HINT_T0);
}

LANES_INLINE void ask_to_write(void* to, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64)
    asm volatile("prefetchw %0" : : "m"(static_cast<char*>(to)[i]));
}

// Query rows from[r], times `scale`, `room` apart.
template <bool Pairs>
LANES void pack_queries(const float* const* from, size_t rows, float scale, size_t size, float* out,
                        size_t room) {
  constexpr size_t kWord = Pairs ? 2 : 1;
  const Floats factor = floats(scale);
  for (size_t d = 0; d < size; d += 16 * kWord) {
    const Mask there = first16(size - d), more = size > d + 16 ? first16(size - d - 16) : 0;
    for (size_t r = 0; r < rows; ++r) {
      const float* x = from[r] + d;
      Floats v = mul(load(there, x), factor);
      if constexpr (Pairs) v = pairs(v, mul(load(more, x + 16), factor));
      store(out + r * room + d / kWord, v);
    }
  }
}

// mean[room] of a head's numbers in some of the keys low .. high, spread evenly: enough to know what
// all have in common. Zeros behind the head's. room is a multiple of 16.
LANES inline void mean_key(const Head& head, size_t low, size_t high, size_t size, size_t room,
                           float* mean) {
  const size_t apart = std::max<size_t>(1, (high - low) / 64);
  const size_t count = (high - low + apart - 1) / apart;
  for (size_t t = low; t < high; t += apart) ask(head.row(t), size * head.width());
  const Floats share = floats(1 / (float)count);
  for (size_t d = 0; d < room; d += 16) {
    const Mask there = d < size ? first16(size - d) : 0;
    Floats sum = floats(0);
    for (size_t t = low; there && t < high; t += apart)
      sum = add(sum, load(head.from, head.half, t * head.stride + d, there));
    store(mean + d, mul(sum, share));
  }
}

// Up to 16 keys from `first` on, transposed, of Pairs less mean[size] and as words of two bfloat16:
// those of `room` numbers, `apart` from each other; zeros behind the last.
template <bool Pairs>
LANES void pack_keys(const Head& head, size_t first, size_t rows, size_t size, const float* mean,
                     float* out, size_t apart, size_t room) {
  constexpr size_t kWord = Pairs ? 2 : 1;
  for (size_t d = 0; d < size; d += 16 * kWord) {
    const Mask there = first16(size - d), more = size > d + 16 ? first16(size - d - 16) : 0;
    Floats v[16];
    for (size_t j = 0; j < 16; ++j) {
      const size_t at = (first + j) * head.stride + d;
      v[j] = floats(0);
      if (j >= rows) continue;
      v[j] = load(head.from, head.half, at, there);
      if constexpr (Pairs) {
        const Floats next = load(head.from, head.half, at + 16, more);
        v[j] = pairs(sub(v[j], load(mean + d)), sub(next, load(mean + d + 16)));
      }
    }
    transpose(v);
    for (size_t j = 0; j < 16 && d + j * kWord < room; ++j)
      store(out + (d / kWord + j) * apart, v[j]);
  }
}

// Up to 16 values from `first` on, of Pairs two in each row of words of two bfloat16.
template <bool Pairs>
LANES void pack_values(const Head& head, size_t first, size_t rows, size_t size, float* out) {
  constexpr size_t kWord = Pairs ? 2 : 1;
  for (size_t d = 0; d < size; d += 16) {
    const Mask there = first16(size - d);
    for (size_t t = 0; t < rows; t += kWord) {
      const size_t at = (first + t) * head.stride + d;
      Floats v = load(head.from, head.half, at, there);
      const Mask also = t + 1 < rows ? there : 0;
      if constexpr (Pairs)
        v = interleaved(pairs(v, load(head.from, head.half, at + head.stride, also)));
      store(out + t / kWord * size + d, there, v);
    }
  }
}

// 16 values from `first` on, as rows of tiles of 16 numbers each: number d of two of them in a word.
// Zeros where there are fewer, and behind the last number.
LANES inline void pack_value_tiles(const Head& head, size_t first, size_t rows, size_t size,
                                   size_t room, float* out) {
  for (size_t d = 0; d < room; d += 16, out += 256) {
    const Mask there = d < size ? first16(size - d) : 0;
    for (size_t t = 0; t < 16; t += 2) {
      const size_t at = (first + t) * head.stride + d;
      const Floats v = load(head.from, head.half, at, t < rows ? there : 0);
      const Floats next = load(head.from, head.half, at + head.stride, t + 1 < rows ? there : 0);
      store(out + t / 2 * 16, interleaved(pairs(v, next)));
    }
  }
}

}  // namespace vlmc
