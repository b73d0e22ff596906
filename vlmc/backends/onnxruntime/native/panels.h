#pragma once
// Products of tokens with panels of 64 channels, of one byte a weight, whose bytes lie as vpdpbusd
// takes them: [k/4][64][4].
//
// Weights are its unsigned operand: signed ones are shifted by 128, and 128 times the sum of a
// token's codes is taken off again.
#include "ahead.h"
#include "team.h"
#include "vnni.h"

namespace vlmc {

struct Panel {
  const uint8_t* bytes;
  bool direct;  // signed still, and read from memory for the first time
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

// R tokens, from `first` on, by 16 C channels. Whole: there are as many, not fewer.
template <size_t R, size_t C, bool Direct, bool Whole, bool Bias>
AVX512_INLINE void byte_tile(const Tokens& t, const Panel& panel, size_t groups, const Out& out,
                             size_t first) {
  const uint8_t *b = panel.bytes, *ahead = panel.ahead ? panel.ahead : b;
  const size_t pace = panel.pace;
  const int8_t* a = t.codes + first * t.room;
  const size_t room = t.room;
  const __m512i shift = _mm512_set1_epi8((char)0x80);
  __m512i acc[R][C];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) acc[r][c] = _mm512_set1_epi32(t.sums[first + r] * -128);
  for (size_t g = 0; g < groups; ++g) {
    __m512i v[C];
    if (!Direct) _mm_prefetch((const char*)ahead + g * pace, _MM_HINT_T1);
    if (Direct && C == 4) panel.course.ask_four(b + g * 256);
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      const uint8_t* at = b + (g * 4 + c) * 64;
      if (Direct && C < 4) panel.course.ask(at);
      v[c] = _mm512_loadu_si512(at);
      if (Direct) v[c] = _mm512_xor_si512(v[c], shift);
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * room + g * 4, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (size_t c = 0; c < C; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], v[c], x);
    }
  }
  // Without this, gcc 12 stores sums to the stack in every turn of the loop above.
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) asm("" : "+v"(acc[r][c]));
#pragma GCC unroll 4
  for (size_t c = 0; c < C; ++c) {
    if (!Whole && c * 16 >= out.count) break;
    const __mmask16 there = Whole ? 0xffff : first16(out.count - c * 16);
    const __m512 scale = _mm512_maskz_loadu_ps(there, out.scales + c * 16);
    float* y = out.y + first * out.stride + c * 16;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512 f = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][c]), scale);
      const __m512 by = _mm512_set1_ps(t.scales[first + r]);
      _mm512_mask_storeu_ps(
          y + r * out.stride, there,
          Bias ? _mm512_fmadd_ps(f, by, _mm512_maskz_loadu_ps(there, out.bias + c * 16))
               : _mm512_mul_ps(f, by));
    }
  }
}

template <size_t C, bool Direct, bool Whole, bool Bias>
AVX512 void multiply_tiles(const Tokens& t, size_t m, Panel panel, size_t groups, const Out& out) {
  size_t i = 0;
  for (; i + 6 <= m; i += 6, panel = panel.after(1, groups))
    byte_tile<6, C, Direct, Whole, Bias>(t, panel, groups, out, i);
  switch (m - i) {
    case 5: return byte_tile<5, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 4: return byte_tile<4, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 3: return byte_tile<3, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 2: return byte_tile<2, C, Direct, Whole, Bias>(t, panel, groups, out, i);
    case 1: return byte_tile<1, C, Direct, Whole, Bias>(t, panel, groups, out, i);
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
    if (count > 1) packed(products[1], index, part, room + groups * 4 * kPanel, &lets);
    if (Halves) gates.panel.course = course(products[0], end, then);
    if (Halves && count > 1)
      lets.panel.course = course(products[1], end, then ? then + kStretch : nullptr);
    for (size_t row = 0; row < m; row += kRows) {
      const Tokens some{t.codes + row * t.room, t.scales + row, t.sums + row, t.room, false};
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
    uint8_t* room = scratch.at_least(count * groups * 4 * kPanel);
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
