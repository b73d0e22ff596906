#pragma once
// Products of tokens with the panels of several weights, divided among threads.
#include "byte_tiles.h"
#include "team.h"
#ifdef VLMC_AVX2
#include "near_spans.h"
#else
#include "near_whole.h"
#endif

namespace vlmc {

// Every token by one panel of channels.
inline void multiply_panel(const Tokens& t, size_t m, const Panel& panel, size_t groups,
                           const Out& out) {
  if (!panel.direct) return multiply_near(t, m, panel, groups, out);
  using Tiles = void (*)(const Tokens&, size_t, Panel, size_t, const Out&);
  static constexpr Tiles kTiles[2][2][2] = {
      {{multiply_tiles<4, true, false, false>, multiply_tiles<4, true, false, true>},
       {multiply_tiles<4, true, true, false>, multiply_tiles<4, true, true, true>}},
      {{multiply_tiles<2, true, false, false>, multiply_tiles<2, true, false, true>},
       {multiply_tiles<2, true, true, false>, multiply_tiles<2, true, true, true>}}};
  const bool whole = out.count >= (panel.half ? kPanel / 2 : kPanel);
  kTiles[panel.half][whole][out.bias != nullptr](t, m, panel, groups, out);
}

// Every token by every panel of the products' channels, and with a gate what it makes of them.
// pack(product, first, count, room, scales) gives a panel of a product's channels, which may lie in
// `room`; their scales are the product's, unless it writes others to `scales`, of 64. Halves: panels
// are direct, and may be shared by two threads.
template <bool Rescaled, bool Halves, typename Pack>
void by_panels(const Tokens& t, size_t m, size_t groups, const Product* products, size_t count,
               Gate gate, const Parallel& parallel, Pack&& pack) {
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
    alignas(64) float beside[kGatedRows * kPanel];
    Packed gates, lets;
    if (!packed(products[0], index, part, room, &gates)) return;
    if (count > 1) packed(products[1], index, part, room + near_bytes(groups), &lets);
    if (Halves) gates.panel.course = course(products[0], end, then);
    if (Halves && count > 1)
      lets.panel.course = course(products[1], end, then ? then + kStretch : nullptr);
    for (size_t row = 0; row < m; row += kGatedRows) {
      const Tokens some = t.from(row);
      const size_t rows = std::min(kGatedRows, m - row);
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
