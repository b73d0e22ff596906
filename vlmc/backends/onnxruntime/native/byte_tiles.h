#pragma once
// Products of tokens with one panel of 64 channels, of one byte a weight: four of a channel, which
// a lane multiplies at once, lie side by side, [k/4][64][4].
#include "byte_panel.h"

namespace vlmc {

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

}  // namespace vlmc
