// Products with weights in blocks. Of many tokens with 4-bit blocks: a panel becomes bytes with one scale
// a channel, then it is as int8 weights.
#include "linear_blocks.h"

#include <vector>

#include "panels.h"
#include "tile_products.h"

namespace vlmc {
namespace {

// Numbers are words of 16 bits here: `first` ones' low bytes, `second` ones' above them.
LANES_INLINE Words bytes_of(Words first, Words second) {
  return odd8(first, shift_left16(second, 8));
}

// 4 bits to bytes, of 16 of a panel's 64 channels: put(group, four numbers of each channel), and
// the channels' `scales`. Codes around zero times 32, ratios of scales times 1024: the product
// without its last 15 bits, rounded, is the byte.
template <typename Put>
LANES_INLINE void expand_panel(const BlockPanel& panel, const BlockPanels& w, size_t groups,
                               float* scales, Put&& put) {
  Floats top = floats(kSmallest);
  for (size_t b = 0; b < w.blocks; ++b) {
    const Words zeros = zeros_of<4>(panel, b);
    const Words reach = max(zeros, sub(words(15), zeros));
    top = max(top, mul(abs(scales_of(panel, b)), to_floats(reach)));
  }
  const Floats scale = mul(top, floats(1 / 127.0f));
  store(scales, scale);
  const Floats by = div(floats(1024), scale);
  const Words low = bytes(15), upper = shorts((short)0xff00);
  const Words four_times =
      repeated(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  const uint8_t* codes = panel.codes;
  for (size_t b = 0, group = 0; b < w.blocks; ++b) {
    const Words zeros = shuffle_bytes(zeros_of<4>(panel, b), four_times);
    const Words whole = to_words(mul(scales_of(panel, b), by));
    const Words ratio = odd16(whole, shift_left(whole, 16));
    const auto of_even = [&](Words v) LANES_LAMBDA {
      return mul_high_rounded(shift_right_signed16(shift_left16(v, 8), 3), ratio);
    };
    const auto of_odd = [&](Words v) LANES_LAMBDA {
      return mul_high_rounded(shift_right_signed16(bit_and(v, upper), 3), ratio);
    };
    for (size_t vector = 0; vector < w.bytes / 64; ++vector, codes += 64, group += 2) {
      const Words v = load_words(codes);
      // Numbers 0, 2, 4 and 6 of each channel's eight, then 1, 3, 5 and 7.
      const Words even = sub_bytes(bit_and(v, low), zeros);
      const Words odd = sub_bytes(bit_and(shift_right16(v, 4), low), zeros);
      const Words n01_45 = bytes_of(of_even(even), of_even(odd));
      const Words n23_67 = bytes_of(of_odd(even), of_odd(odd));
      const Words four = odd16(n01_45, shift_left(n23_67, 16));
      const Words next = odd16(shift_right(n01_45, 16), n23_67);
      if (group < groups) put(group, four);
      if (group + 1 < groups) put(group + 1, next);
    }
  }
}

}  // namespace

void linear_blocks(const float* x, size_t m, size_t k, int bits, size_t block,
                   const Product* products, size_t count, Gate gate, const Parallel& parallel) {
  if (bits == 8 || m <= kFewTokens) {
    static thread_local std::vector<Product> here;
    for (size_t row = 0; row < m; row += kFewTokens) {
      const size_t rows = std::min(kFewTokens, m - row);
      here.assign(products, products + count);
      for (Product& p : here)
        if (p.y) p.y += row * p.n;
      linear_blocks_few(x + row * k, rows, k, bits, block, here.data(), count, gate, parallel);
    }
    return;
  }
  const size_t groups = (k + 3) / 4;
  // What a panel is expanded from.
  const auto codes = [&](const Product& of, size_t first) {
    const BlockPanels w(of, k, bits, block);
    const size_t panels = (std::min(kPanel, of.n - first) + kLanes - 1) / kLanes;
    return std::make_pair(w[first / kLanes].codes, panels * w.blocks * w.bytes);
  };
  if (const Tokens t = quantize_tokens(x, m, k, tiled(m), parallel); t.tiled)
    return by_tiles<true>(
        t, m, products, count, gate, parallel,
        [&](const Product& of, size_t first, const TilePanel& to, float* scales) LANES {
          const BlockPanels w(of, k, bits, block);
          for (size_t c = 0; c < std::min(kPanel, of.n - first); c += kLanes)
            expand_panel(w[(first + c) / kLanes], w, groups, scales + c,
                         [&](size_t group, Words four)
                             LANES_LAMBDA { store_words(to.at(c, group), four); });
        },
        codes);
  else
    by_panels<true, false>(
        near_tokens(t, m, parallel), m, groups, products, count, gate, parallel,
        [&](const Product& of, size_t first, size_t channels, uint8_t* room, float* scales)
            LANES -> Panel {
              const BlockPanels w(of, k, bits, block);
              for (size_t c = 0; c < channels; c += kLanes) {
                NearWriter strip(room, groups, c);
                expand_panel(w[(first + c) / kLanes], w, groups, scales + c,
                             [&](size_t group, Words four)
                                 LANES_LAMBDA { strip.put(group, four); });
              }
              const Panel near = {room, false};
              if (first + kPanel >= of.n) return near;
              const auto next = codes(of, first + kPanel);
              return near.before(next.first, next.second, groups, m);
            });
}

}  // namespace vlmc
