#pragma once
// Products of tokens with panels of 64 channels, of one byte a weight: four of a channel, which a
// lane multiplies at once, lie side by side, [k/4][64][4].
#include "ahead.h"
#include "codes.h"
#include "team.h"

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
  constexpr size_t kSums = 6 * kAbreast, kFit = R * 4 <= kSums ? 4 : R * 2 <= kSums ? 2 : 1;
  constexpr size_t kStep = kFit < C ? kFit : C;
  Panel of = panel;
  Out to = out;
  for (size_t c = 0; c < C; c += kStep) {
    byte_tile<R, kStep, Direct, Whole, Bias>(t, of, groups, to, first);
    if (!Whole && to.count <= kStep * 16) return;
    of.bytes += kStep * 64;
    to.scales += kStep * 16, to.y += kStep * 16, to.count -= kStep * 16;
    if (Bias) to.bias += kStep * 16;
  }
}

// R tokens, from `first` on, in 16 bits, by 16 channels that lie as put_near has them.
template <size_t R, bool Whole, bool Bias>
LANES_INLINE void wide_tile(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                            size_t first) {
  const uint8_t *b = panel.bytes, *ahead = panel.ahead ? panel.ahead : b;
  const size_t pace = panel.pace, room = t.room;
  const char* a = reinterpret_cast<const char*>(t.wide + first * room);
  Words acc[R][1];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) acc[r][0] = words(0);
  for (size_t g = 0; g < groups; ++g, b += 128, a += 4) {
    _mm_prefetch((const char*)ahead + g * pace, _MM_HINT_T1);
#pragma GCC unroll 2
    for (size_t part = 0; part < 2; ++part) {
      const Words v = load_words(b + part * 64);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        int32_t two;
        std::memcpy(&two, a + r * 2 * room + part * room, 4);
        acc[r][0] = dot_shorts(acc[r][0], v, words(two));
        hold(acc[r][0]);  // else gcc 12 adds products of both parts first, and has no register left
      }
    }
  }
  write_tile<R, 1, Whole, Bias>(acc, t, out, first);
}

// How weights lie that are near: of four of each of 16 channels from c on, as they are stored,
// group by group of 64 channels, `shifted`; or where tokens have 16 bits, in 16 bits too, strip by
// strip of 16.
LANES_INLINE void put_near(uint8_t* room, size_t groups, size_t group, size_t c, Words four) {
  if (kShift) return store_words(room + group * 256 + c * 4, shifted(four));
  uint8_t* at = room + (c / 16 * groups + group) * 128;
  store_words(at, first_and_third(four));
  store_words(at + 64, second_and_fourth(four));
}
// Bytes of a panel there.
constexpr size_t near_bytes(size_t groups) { return groups * 4 * kPanel * (kShift ? 1 : 2); }

template <size_t R, size_t C, bool Direct, bool Whole, bool Bias>
LANES_INLINE void tile_of(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                          size_t first) {
  if constexpr (Direct || kShift)
    byte_tiles<R, C, Direct, Whole, Bias>(t, panel, groups, out, first);
  else
    wide_tile<R, Whole, Bias>(t, panel, groups, out, first);
}

template <size_t C, bool Direct, bool Whole, bool Bias>
LANES void multiply_tiles(const Tokens& t, size_t m, Panel panel, size_t groups, const Out& out) {
  size_t i = 0;
  for (; i + 6 <= m; i += 6, panel = panel.after(1, groups))
    tile_of<6, C, Direct, Whole, Bias>(t, panel, groups, out, i);
  switch (m - i) {
    case 5:
      return tile_of<5, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 4:
      return tile_of<4, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 3:
      return tile_of<3, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 2:
      return tile_of<2, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 1:
      return tile_of<1, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    default: return;
  }
}

// Every token, in 16 bits, by a panel that is near: strip by strip, each of which stays nearer.
template <bool Whole, bool Bias>
LANES void multiply_strips(const Tokens& t, size_t m, Panel panel, size_t groups, const Out& out) {
  Out to = out;
  for (size_t c = 0; c < out.count; c += 16) {
    to.scales = out.scales + c, to.y = out.y + c, to.count = out.count - c;
    if (Bias) to.bias = out.bias + c;
    multiply_tiles<1, false, Whole, Bias>(t, m, panel, groups, to);
    panel.bytes += groups * 128;
    panel.ahead = nullptr, panel.pace = 0;  // all of it was asked for
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
  if constexpr (!kShift) {
    static constexpr Tiles kStrips[2][2] = {
        {multiply_strips<false, false>, multiply_strips<false, true>},
        {multiply_strips<true, false>, multiply_strips<true, true>}};
    if (!panel.direct) return kStrips[whole][out.bias != nullptr](t, m, panel, groups, out);
  }
  kTiles[panel.direct + panel.half][whole][out.bias != nullptr](t, m, panel, groups, out);
}

// Every token by every panel of the products' channels, and with a gate what it makes of them.
// pack(product, first, count, room, scales) gives a panel of a product's channels, which may lie in
// `room`; their scales are the product's, unless it writes others to `scales`, of 64. Halves: panels
// are direct, and may be shared by two threads.
template <bool Rescaled, bool Halves, typename Pack>
void by_panels(const Tokens& t, size_t m, size_t groups, const Product* products, size_t count,
               Gate gate, const Parallel& parallel, Pack&& pack) {
  constexpr size_t kRows = 48;  // tokens whose products stay near until they are gated
  enum Part { all, front, back };
  const auto panels = [](const Product& p) { return (p.n + kPanel - 1) / kPanel; };
  struct Packed {
    Panel panel;
    Out out;
    alignas(64) float scales[kPanel];
  };
  // False where that part has no channel.
  const auto packed = [&](const Product& p, size_t index, Part part, uint8_t* room, Packed* made) {
    constexpr size_t kHalf = kPanel / 2;
    const size_t first = index * kPanel, channels = std::min(kPanel, p.n - first);
    made->panel = pack(p, first, channels, room, made->scales);
    const size_t skipped = part == back ? std::min(kHalf, channels) : 0, at = first + skipped;
    made->panel.half = part != all;
    made->panel.bytes += 4 * skipped;
    made->out = {Rescaled ? made->scales : static_cast<const float*>(p.scales) + at,
                 p.bias ? p.bias + at : nullptr, p.y + at, p.n,
                 part == front ? std::min(kHalf, channels) : channels - skipped};
    return made->out.count > 0;
  };
  // Of a direct product's panels: how a thread reads them up to number `end`, and goes on.
  const auto course = [&](const Product& p, size_t end, const void* then) -> Course {
    return {static_cast<const uint8_t*>(p.w) + end * groups * 4 * kPanel, then};
  };
  const auto multiply = [&](size_t index, Part part, uint8_t* room, size_t end, const char* then) {
    const Product* p = products;
    for (; index >= panels(*p); ++p) index -= panels(*p), end -= panels(*p);
    Packed made;
    if (!packed(*p, index, part, room, &made)) return;
    if (Halves)
      made.panel.course = end > panels(*p) ? course(*p, panels(*p), p[1].w) : course(*p, end, then);
    multiply_panel(t, m, made.panel, groups, made.out);
  };
  const auto multiply_and_gate = [&](size_t index, Part part, uint8_t* room, size_t end,
                                     const char* then) {
    alignas(64) float beside[kRows * kPanel];
    Packed gates, lets;
    if (!packed(products[0], index, part, room, &gates)) return;
    if (count > 1) packed(products[1], index, part, room + near_bytes(groups), &lets);
    if (Halves) gates.panel.course = course(products[0], end, then);
    if (Halves && count > 1)
      lets.panel.course = course(products[1], end, then ? then + kStretch : nullptr);
    for (size_t row = 0; row < m; row += kRows) {
      const Tokens some = t.from(row);
      const size_t rows = std::min(kRows, m - row);
      Out out = gates.out;
      out.y += row * out.stride;
      multiply_panel(some, rows, gates.panel, groups, out);
      lets.out.y = beside, lets.out.stride = kPanel;
      if (count > 1) multiply_panel(some, rows, lets.panel, groups, lets.out);
      gates.panel = gates.panel.after(rows / 6, groups);
      if (count > 1) lets.panel = lets.panel.after(rows / 6, groups);
      gate_rows(gate, rows, out.count, count > 1 ? beside : nullptr, kPanel, out.y, out.stride);
    }
  };
  size_t total = 0;
  for (size_t i = 0; i < (gate == Gate::none ? count : 1); ++i) total += panels(products[i]);
  // A thread's panels lie side by side: what it asks memory for ahead is its own.
  together<1>(parallel, [&](Member member) {
    static thread_local Scratch<uint8_t> scratch;
    uint8_t* room = scratch.at_least(count * near_bytes(groups));
    size_t end = 0;  // of the run of panels that is this thread's
    const char* const then = Halves ? member.front_after() : nullptr;
    const auto one = [&](size_t index, Part part) {
      gate == Gate::none ? multiply(index, part, room, end, then)
                         : multiply_and_gate(index, part, room, end, then);
    };
    if (!Halves)
      return member.share(total, 1, [&](size_t from, size_t to) {
        for (; from < to; ++from) one(from, all);
      });
    // Of five panels, two threads have two and a half each.
    member.share(2 * total, 1, [&](size_t from, size_t to) {
      end = (member.end_of_run(from, to) + 1) / 2;
      if (from % 2) one(from++ / 2, back);
      for (; from + 1 < to; from += 2) one(from / 2, all);
      if (from < to) one(from / 2, front);
    }, 2);
  });
}

}  // namespace vlmc
