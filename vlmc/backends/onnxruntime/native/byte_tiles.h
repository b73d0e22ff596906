#pragma once
// Products of tokens with one panel of 64 channels, of one byte a weight: four of a channel, which
// a lane multiplies at once, lie side by side, [k/4][64][4].
#include "byte_panel.h"

namespace vlmc {

// The order in which one token reads a panel's groups from memory: from kStreams places in turns.
class Streams {
 public:
  Streams(const Panel& panel, size_t groups) : bytes_(panel.bytes), part_(groups / kStreams) {
    const uint8_t* end = bytes_ + groups * kGroup;
    on_ = panel.course.on(end) - reinterpret_cast<const char*>(bytes_ + part_ * kGroup);
  }

  size_t group(size_t turn) const {
    return turn < kStreams * part_ ? turn % kStreams * part_ + turn / kStreams : turn;
  }
  // What is read a few turns later from where `group` lies, in this panel or in the next.
  const uint8_t* later(size_t turn, size_t group) const {
    return bytes_ + (group + kAhead) * kGroup + (turn / kStreams + kAhead < part_ ? 0 : on_);
  }

 private:
  static constexpr size_t kGroup = 4 * kPanel, kAhead = kGroupsAhead;

  const uint8_t* bytes_;
  size_t part_;
  ptrdiff_t on_;
};

// R tokens, from `first` on, by 16 C channels: sums of groups from `begin` up to `end`. Kept: they begin
// with those at `kept`, [R, C, 16], and go there; else they are written. Whole: there are as many channels,
// not fewer. InStreams: groups are read in the order of Streams.
template <size_t R, size_t C, bool Direct, bool InStreams, bool Kept, bool Whole, bool Bias>
LANES_INLINE void byte_tile(const Tokens& t, const Panel& panel, size_t begin, size_t end,
                            const Out& out, size_t first, int32_t* kept) {
  const Streams streams(panel, end);  // used where all groups are asked for
  const uint8_t *b = panel.bytes, *ahead = panel.ahead ? panel.ahead : b;
  const size_t pace = panel.pace;
  const int8_t* a = t.codes + first * t.room;
  const size_t room = t.room;
  Words acc[R][C];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c)
      acc[r][c] = Kept ? load_words(kept + (r * C + c) * 16) : words(t.sums[first + r] * -kShift);
  if (!Direct && Whole) ask_to_write<R, C>(out, first);
  for (size_t turn = begin; turn < end; ++turn) {
    const size_t g = InStreams ? streams.group(turn) : turn;
    Words v[C];
    if (!Direct) _mm_prefetch((const char*)ahead + g * pace, _MM_HINT_T1);
    if (Direct && !InStreams && C == 4) panel.course.ask_four(b + g * 256);
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      const uint8_t* at = b + (g * 4 + c) * 64;
      if (Direct && !InStreams && C < 4) panel.course.ask(at);
      if (InStreams) ask_line(streams.later(turn, g) + c * 64);
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
  // Held as they are, or copied: else gcc 12 stores sums to the stack in every turn of the loop above.
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      if (!Kept) {
        hold(acc[r][c]);
        continue;
      }
      Words sum = acc[r][c];
      hold(sum);
      store_words(kept + (r * C + c) * 16, sum);
    }
  if (!Kept) write_tile<R, C, Whole, Bias>(acc, t, out, first);
}

// The same where registers have sums for fewer channels: in steps of Step, which take turns every few
// groups, so that what one of them waited for, neighbours of its lines, is near when the others read it.
template <size_t R, size_t C, size_t Step, bool Direct, bool Whole, bool Bias>
LANES_INLINE void tile_in_turns(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                                size_t first) {
  constexpr size_t kTurn = 32;  // groups
  constexpr size_t kSteps = C / Step;
  const size_t steps = Whole ? kSteps : std::min(kSteps, (out.count - 1) / (Step * 16) + 1);
  alignas(64) int32_t kept[kSteps][R * Step * 16];
  for (size_t i = 0; i < steps * R * Step; ++i)
    store_words(kept[0] + i * 16, words(t.sums[first + i / Step % R] * -kShift));
  for (size_t begin = 0; begin < groups; begin += kTurn) {
    const size_t end = std::min(groups, begin + kTurn);
    Panel of = panel;
    for (size_t s = 0; s < steps; ++s, of.bytes += Step * 64)
      byte_tile<R, Step, Direct, false, true, Whole, Bias>(t, of, begin, end, out, first, kept[s]);
  }
  for (size_t s = 0; s < steps; ++s) {
    Words sums[R][Step];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (size_t c = 0; c < Step; ++c) sums[r][c] = load_words(kept[s] + (r * Step + c) * 16);
    write_tile<R, Step, Whole, Bias>(sums, t, out.from(s * Step * 16), first);
  }
}

template <size_t R, size_t C, bool Direct, bool Whole, bool Bias>
LANES __attribute__((noinline)) void byte_tiles(const Tokens& t, const Panel& panel, size_t groups,
                                                const Out& out, size_t first) {
  constexpr size_t kFit = R <= kAbreast ? 4 : R <= 3 ? 2 : kAbreast;  // sums of R rows in registers
  if constexpr (C > kFit) {
    tile_in_turns<R, C, kFit, Direct, Whole, Bias>(t, panel, groups, out, first);
  } else {
    constexpr bool kMay = Direct && R == 1;
    if (kMay && in_streams())
      byte_tile<R, C, Direct, kMay, false, Whole, Bias>(t, panel, 0, groups, out, first, nullptr);
    else
      byte_tile<R, C, Direct, false, false, Whole, Bias>(t, panel, 0, groups, out, first, nullptr);
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
