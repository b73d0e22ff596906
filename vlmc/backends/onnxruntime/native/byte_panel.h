#pragma once
// A panel of 64 channels of one byte a weight, and where its products go.
#include "ahead.h"
#include "codes.h"

namespace vlmc {

struct Panel {
  const uint8_t* bytes;
  bool direct;  // as they are stored, and read from memory for the first time; else a near panel
  // What is read from memory next, and the bytes of it that are asked for while a tile takes a
  // group: memory answers late. Or null.
  const uint8_t* ahead = nullptr;
  size_t pace = 0;
  bool half = false;  // the first 32 of the channels that lie here; direct
  Course course;      // of what is direct

  // `size` bytes that are asked for by the last tile of m tokens, 6 in each.
  Panel before(const uint8_t* next, size_t size, size_t groups, size_t m) const {
    return {bytes, direct, next, 6 * size / (groups * m) + 1, false, {}};
  }

  // The same after some tiles.
  Panel after(size_t tiles, size_t groups) const {
    return {bytes, direct, ahead + tiles * groups * pace, pace, half, course};
  }
};

struct Out {
  const float* scales;  // of the panel's channels
  const float* bias;    // or null
  float* y;             // first token, first channel of the panel
  size_t stride, count;

  // From a later channel on.
  Out from(size_t channel) const {
    return {scales + channel, bias ? bias + channel : nullptr, y + channel, stride,
            count - channel};
  }
};

// Memory of what is written to it later. A store that waits for its line holds up those behind it.
template <size_t R, size_t C>
LANES_INLINE void ask_to_write(const Out& out, size_t first) {
  for (size_t r = 0; r < R; ++r)
    for (size_t c = 0; c < C; ++c)
      asm volatile("prefetchw %0" : : "m"(out.y[(first + r) * out.stride + c * 16]));
}

// y of R tokens, from `first` on, by 16 C channels.
template <size_t R, size_t C, bool Whole, bool Bias>
LANES_INLINE void write_tile(const Words (&sums)[R][C], const Tokens& t, const Out& out,
                             size_t first) {
  const float* const token_scales = t.scales + first;
  const size_t stride = out.stride;
#pragma GCC unroll 4
  for (size_t c = 0; c < C; ++c) {
    if (!Whole && c * 16 >= out.count) break;
    const Mask there = Whole ? 0xffff : first16(out.count - c * 16);
    const Floats scale = load(there, out.scales + c * 16);
    float* y = out.y + first * stride + c * 16;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const Floats f = mul(to_floats(sums[r][c]), scale);
      const Floats by = floats(token_scales[r]);
      store(y + r * stride, there,
            Bias ? fmadd(f, by, load(there, out.bias + c * 16)) : mul(f, by));
    }
  }
}

}  // namespace vlmc
