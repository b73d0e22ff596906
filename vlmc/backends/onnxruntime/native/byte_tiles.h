#pragma once
// Products of tokens with one panel of 64 channels, of one byte a weight: four of a channel, which
// a lane multiplies at once, lie side by side, [k/4][64][4].
#include "ahead.h"
#include "codes.h"

namespace vlmc {

struct Panel {
  const uint8_t* bytes;
  bool direct;  // as they are stored, and read from memory for the first time
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
};

// y of R tokens, from `first` on, by 16 C channels.
template <size_t R, size_t C, bool Whole, bool Bias>
LANES_INLINE void write_tile(const Words (&sums)[R][C], const Tokens& t, const Out& out,
                             size_t first) {
#pragma GCC unroll 4
  for (size_t c = 0; c < C; ++c) {
    if (!Whole && c * 16 >= out.count) break;
    const Mask there = Whole ? 0xffff : first16(out.count - c * 16);
    const Floats scale = load(there, out.scales + c * 16);
    float* y = out.y + first * out.stride + c * 16;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const Floats f = mul(to_floats(sums[r][c]), scale);
      const Floats by = floats(t.scales[first + r]);
      store(y + r * out.stride, there,
            Bias ? fmadd(f, by, load(there, out.bias + c * 16)) : mul(f, by));
    }
  }
}

// R tokens, from `first` on, by 16 C channels. Whole: there are as many, not fewer.
template <size_t R, size_t C, bool Direct, bool Whole, bool Bias>
LANES_INLINE void byte_tile(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                            size_t first) {
  const uint8_t *b = panel.bytes, *ahead = panel.ahead ? panel.ahead : b;
  const size_t pace = panel.pace;
  const int8_t* a = t.codes + first * t.room;
  const size_t room = t.room;
  Words acc[R][C];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) acc[r][c] = words(t.sums[first + r] * -kShift);
  for (size_t g = 0; g < groups; ++g) {
    Words v[C];
    if (!Direct) _mm_prefetch((const char*)ahead + g * pace, _MM_HINT_T1);
    if (Direct && C == 4) panel.course.ask_four(b + g * 256);
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      const uint8_t* at = b + (g * 4 + c) * 64;
      if (Direct && C < 4) panel.course.ask(at);
      v[c] = load_words(at);
      if (Direct) v[c] = shifted(v[c]);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * room + g * 4, 4);
      const Words x = words(four);
#pragma GCC unroll 4
      for (size_t c = 0; c < C; ++c) acc[r][c] = dot_weights(acc[r][c], v[c], x);
    }
  }
  // Without this, gcc 12 stores sums to the stack in every turn of the loop above.
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) hold(acc[r][c]);
  write_tile<R, C, Whole, Bias>(acc, t, out, first);
}

// The same in steps of as many channels as registers have sums for.
template <size_t R, size_t C, bool Direct, bool Whole, bool Bias>
LANES_INLINE void byte_tiles(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                             size_t first) {
  constexpr size_t kFit = R <= kAbreast ? 4 : R <= 3 ? 2 : kAbreast;  // sums of R rows in registers
  constexpr size_t kStep = C < kFit ? C : kFit;
  Panel of = panel;
  Out to = out;
  for (size_t c = 0; c < C; c += kStep) {
    byte_tile<R, kStep, Direct, Whole, Bias>(t, of, groups, to, first);
    if (!Whole && to.count <= kStep * 16) return;
    of.bytes += kStep * 64;
    of.ahead = nullptr, of.pace = 0;  // asked for
    to.scales += kStep * 16, to.y += kStep * 16, to.count -= kStep * 16;
    if (Bias) to.bias += kStep * 16;
  }
}

template <size_t C, bool Direct, bool Whole, bool Bias>
LANES void multiply_tiles(const Tokens& t, size_t m, Panel panel, size_t groups, const Out& out) {
  size_t i = 0;
  for (; i + 6 <= m; i += 6, panel = panel.after(1, groups))
    byte_tiles<6, C, Direct, Whole, Bias>(t, panel, groups, out, i);
  switch (m - i) {
    case 5: return byte_tiles<5, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 4: return byte_tiles<4, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 3: return byte_tiles<3, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 2: return byte_tiles<2, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 1: return byte_tiles<1, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    default: return;
  }
}

// Every token by one panel of channels.
inline void multiply_panel(const Tokens& t, size_t m, const Panel& panel, size_t groups,
                           const Out& out) {
  using Tiles = void (*)(const Tokens&, size_t, Panel, size_t, const Out&);
  static constexpr Tiles kTiles[3][2][2] = {
      {{multiply_tiles<4, false, false, false>, multiply_tiles<4, false, false, true>},
       {multiply_tiles<4, false, true, false>, multiply_tiles<4, false, true, true>}},
      {{multiply_tiles<4, true, false, false>, multiply_tiles<4, true, false, true>},
       {multiply_tiles<4, true, true, false>, multiply_tiles<4, true, true, true>}},
      {{multiply_tiles<2, true, false, false>, multiply_tiles<2, true, false, true>},
       {multiply_tiles<2, true, true, false>, multiply_tiles<2, true, true, true>}}};
  const bool whole = out.count >= (panel.half ? kPanel / 2 : kPanel);
  kTiles[panel.direct + panel.half][whole][out.bias != nullptr](t, m, panel, groups, out);
}

}  // namespace vlmc
