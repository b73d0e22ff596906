// Products with weights in blocks, [n, k/block, ...], from the layout they are stored in. Of many tokens
// with 4-bit blocks: a panel becomes bytes with one scale a channel, then it is as int8 weights.
#include "linear_blocks.h"

#include <cmath>
#include <vector>

#include "panels.h"

namespace vlmc {
namespace {

// A 4x4 of lanes, transposed.
AVX512_INLINE void lanes_in_order(__m512i* v) {
  __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

AVX512_INLINE void transpose16(__m512i* v) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 q + j]: column 4 l + j of rows 4 q .. 4 q + 3 in lane l.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512i four[4] = {v[j], v[4 + j], v[8 + j], v[12 + j]};
    lanes_in_order(four);
    for (int l = 0; l < 4; ++l) t[4 * l + j] = four[l];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Channel `c` at 4 bits -> bytes around 128 with one scale, which is returned.
AVX512 float expand_channel(const BlockWeights& w, size_t c, uint8_t* out) {
  const uint8_t* codes = w.codes + c * w.blocks * w.block / 2;
  const float* scales = w.scales + c * w.blocks;
  const uint8_t* zeros = w.zero_points ? w.zero_points + c * ((w.blocks + 1) / 2) : nullptr;
  const auto zero_of = [&](size_t b) { return zeros ? (zeros[b / 2] >> (b % 2 * 4)) & 15 : 8; };
  float top = kSmallest;
  for (size_t b = 0; b < w.blocks; ++b) {
    const int zero = zero_of(b);
    top = std::max(top, std::abs(scales[b]) * (float)std::max(zero, 15 - zero));
  }
  const float scale = top * (1 / 127.0f);
  const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m128i low = _mm_set1_epi8(15);
  for (size_t b = 0; b < w.blocks; ++b) {
    const float ratio = scales[b] / scale;
    const __m512 values = _mm512_mul_ps(
        _mm512_sub_ps(steps, _mm512_set1_ps((float)zero_of(b))), _mm512_set1_ps(ratio));
    const __m128i table = _mm_xor_si128(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values)),
                                        _mm_set1_epi8((char)0x80));
    for (size_t j = 0; j < w.block / 2; j += 16, codes += 16, out += 32) {
      const size_t bytes = std::min<size_t>(16, w.block / 2 - j);
      const __m128i packed = _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1), codes);
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(packed, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), low));
      _mm_storeu_si128((__m128i*)out, _mm_unpacklo_epi8(even, odd));
      _mm_storeu_si128((__m128i*)(out + 16), _mm_unpackhi_epi8(even, odd));
      if (bytes < 16) codes -= 16 - bytes, out -= 32 - 2 * bytes;
    }
  }
  return scale;
}

AVX512 void pack_blocks(const BlockWeights& w, size_t first, size_t count, size_t groups,
                      uint8_t* rows, size_t room, uint8_t* out, float* scales) {
  for (size_t s = 0; s < kPanel; s += 16) {
    for (size_t j = 0; j < 16; ++j) {
      if (s + j < count) scales[s + j] = expand_channel(w, first + s + j, rows + j * room);
    }
    for (size_t g = 0; g < groups; g += 16) {
      __m512i v[16];
      for (size_t j = 0; j < 16; ++j) v[j] = _mm512_loadu_si512(rows + j * room + g * 4);
      transpose16(v);
      for (size_t j = 0; j < 16 && g + j < groups; ++j)
        _mm512_store_si512(out + ((g + j) * 4 + s / 16) * 64, v[j]);
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
  const Tokens t = quantize_tokens(x, m, k, parallel);
  const size_t groups = (k + 3) / 4;
  by_panels<true, false>(
      t, m, groups, products, count, gate, parallel,
      [&](const Product& of, size_t first, size_t channels, uint8_t* room, float* scales) -> Panel {
        static thread_local Scratch<uint8_t> rows;
        const BlockWeights weights = blocks_of(of, k, block);
        const size_t width = padded(weights.blocks * block, 64) + 64;
        pack_blocks(weights, first, channels, groups, rows.at_least(16 * width), width, room, scales);
        return {room, false};
      });
}

}  // namespace vlmc
