// Products with weights in blocks. Of many tokens with 4-bit blocks: a panel becomes bytes with one scale
// a channel, then it is as int8 weights.
#include "linear_blocks.h"

#include <vector>

#include "panels.h"
#include "tile_products.h"

namespace vlmc {
namespace {

// Numbers are words of 16 bits here: `first` ones' low bytes, `second` ones' above them.
AVX512_INLINE __m512i bytes_of(__m512i first, __m512i second) {
  return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, first, _mm512_slli_epi16(second, 8));
}

// 4 bits to bytes, of 16 of a panel's 64 channels: each group of four numbers of a channel at
// place(group), bits turned where `turned` has ones, and the channels' `scales`. Codes around zero
// times 32, ratios of scales times 1024: the product without its last 15 bits, rounded, is the byte.
template <typename Place>
AVX512_INLINE void expand_panel(const BlockPanel& panel, const BlockPanels& w, size_t groups,
                                uint8_t turned, float* scales, Place&& place) {
  __m512 top = _mm512_set1_ps(kSmallest);
  for (size_t b = 0; b < w.blocks; ++b) {
    const __m512i zeros = zeros_of<4>(panel, b);
    const __m512i reach = _mm512_max_epi32(zeros, _mm512_sub_epi32(_mm512_set1_epi32(15), zeros));
    top = _mm512_max_ps(
        top, _mm512_mul_ps(_mm512_abs_ps(scales_of(panel, b)), _mm512_cvtepi32_ps(reach)));
  }
  const __m512 scale = _mm512_mul_ps(top, _mm512_set1_ps(1 / 127.0f));
  _mm512_store_ps(scales, scale);
  const __m512 by = _mm512_div_ps(_mm512_set1_ps(1024), scale);
  const __m512i low = _mm512_set1_epi8(15), upper = _mm512_set1_epi16((short)0xff00);
  const __m512i middle = _mm512_set1_epi8((char)turned);
  const __m512i four_times =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
  const uint8_t* codes = panel.codes;
  for (size_t b = 0, group = 0; b < w.blocks; ++b) {
    const __m512i zeros = _mm512_shuffle_epi8(zeros_of<4>(panel, b), four_times);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(scales_of(panel, b), by));
    const __m512i ratio = _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16));
    const auto of_even = [&](__m512i v) AVX512_LAMBDA {
      return _mm512_mulhrs_epi16(_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 3), ratio);
    };
    const auto of_odd = [&](__m512i v) AVX512_LAMBDA {
      return _mm512_mulhrs_epi16(_mm512_srai_epi16(_mm512_and_si512(v, upper), 3), ratio);
    };
    for (size_t vector = 0; vector < w.bytes / 64; ++vector, codes += 64, group += 2) {
      const __m512i v = _mm512_loadu_si512(codes);
      // Numbers 0, 2, 4 and 6 of each channel's eight, then 1, 3, 5 and 7.
      const __m512i even = _mm512_sub_epi8(_mm512_and_si512(v, low), zeros);
      const __m512i odd = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), low), zeros);
      const __m512i n01_45 = bytes_of(of_even(even), of_even(odd));
      const __m512i n23_67 = bytes_of(of_odd(even), of_odd(odd));
      const __m512i four =
          _mm512_mask_blend_epi16(0xaaaaaaaa, n01_45, _mm512_slli_epi32(n23_67, 16));
      const __m512i next =
          _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(n01_45, 16), n23_67);
      if (group < groups) _mm512_store_si512(place(group), _mm512_xor_si512(four, middle));
      if (group + 1 < groups) _mm512_store_si512(place(group + 1), _mm512_xor_si512(next, middle));
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
        [&](const Product& of, size_t first, const TilePanel& to, float* scales) AVX512 {
          const BlockPanels w(of, k, bits, block);
          for (size_t c = 0; c < std::min(kPanel, of.n - first); c += kLanes)
            expand_panel(w[(first + c) / kLanes], w, groups, 0, scales + c,
                         [&](size_t group) { return to.at(c, group); });
        },
        codes);
  else
    by_panels<true, false>(
        t, m, groups, products, count, gate, parallel,
        [&](const Product& of, size_t first, size_t channels, uint8_t* room,
            float* scales) AVX512 -> Panel {
          const BlockPanels w(of, k, bits, block);
          for (size_t c = 0; c < channels; c += kLanes)
            expand_panel(w[(first + c) / kLanes], w, groups, 0x80, scales + c,
                         [&](size_t group) { return room + c * 4 + group * 256; });
          const Panel near = {room, false};
          if (first + kPanel >= of.n) return near;
          const auto next = codes(of, first + kPanel);
          return near.before(next.first, next.second, groups, m);
        });
}

}  // namespace vlmc
