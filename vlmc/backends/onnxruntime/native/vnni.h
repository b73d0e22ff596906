#pragma once
// What products with quantized weights share: activations as signed bytes, and the product of many
// tokens with 64 channels.
//
// Weights are the unsigned operand of vpdpbusd: signed ones are shifted by 128, and 128 times the
// sum of a token's codes is taken off again.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "activation.h"
#include "avx512.h"
#include "kernels.h"
#include "scratch.h"

namespace vlmc {

constexpr size_t kFewTokens = 8;  // up to here weights are read once and never packed
constexpr float kSmallest = 1e-12f;

inline size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The largest magnitude. Bits are compared: so is what is no number, which lies above infinity and
// makes a scale, and with it every result, that is none either.
AVX512_INLINE float largest(const float* x, size_t k) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top = _mm512_setzero_si512();
  for (size_t i = 0; i < k; i += 16)
    top = _mm512_max_epi32(
        top, _mm512_and_si512(magnitude, _mm512_maskz_loadu_epi32(first16(k - i), x + i)));
  const int32_t bits = _mm512_reduce_max_epi32(top);
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// Codes of k numbers, rounded to even, zeros up to `room`; returns their sum.
AVX512_INLINE int32_t codes_of(const float* x, size_t k, size_t room, float inverse, int8_t* out) {
  __m512 by = _mm512_set1_ps(inverse);
  __m512i sum = _mm512_setzero_si512();
  for (size_t i = 0; i < room; i += 16) {
    __m512 v = i < k ? _mm512_maskz_loadu_ps(first16(k - i), x + i) : _mm512_setzero_ps();
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, by));
    sum = _mm512_add_epi32(sum, q);
    _mm512_mask_cvtsepi32_storeu_epi8(out + i, first16(room - i), q);
  }
  return _mm512_reduce_add_epi32(sum);
}

struct Tokens {
  int8_t* codes;  // [m, room]
  float* scales;  // [m]
  int32_t* sums;  // [m], of the codes
  size_t room;
};

AVX512 inline Tokens quantize_tokens(const float* x, size_t m, size_t k, const Parallel& parallel) {
  static thread_local Scratch<int8_t> codes;
  static thread_local Scratch<float> scales;
  static thread_local Scratch<int32_t> sums;
  Tokens t{nullptr, scales.at_least(m), sums.at_least(m), padded(k, 64)};
  t.codes = codes.at_least(m * t.room);
  constexpr size_t kRows = 16;
  each(parallel, (m + kRows - 1) / kRows, [&](size_t task) AVX512 {
    for (size_t i = task * kRows; i < std::min(m, (task + 1) * kRows); ++i) {
      float scale = (largest(x + i * k, k) + kSmallest) * (1 / 127.0f);
      t.scales[i] = scale;
      t.sums[i] = codes_of(x + i * k, k, t.room, 1 / scale, t.codes + i * t.room);
    }
  });
  return t;
}

// 4 vectors as `interleave` leaves them <-> vectors of 16 channels in order (a 4x4 of lanes)
AVX512_INLINE void lanes_in_order(__m512i* v) {
  __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
  __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
  v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
  v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
  v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
  v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

struct Out {
  const float* scales;  // of the panel's channels
  const float* bias;    // or null
  float* y;             // first token, first channel of the panel
  size_t stride, count;
};

template <size_t R>
AVX512_INLINE void byte_tile(const int8_t* a, size_t room, const uint8_t* b, size_t groups,
                           const float* token_scales, const int32_t* token_sums, const Out& out,
                           size_t first) {
  __m512i acc[R][4];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; ++c) acc[r][c] = _mm512_setzero_si512();
  for (size_t g = 0; g < groups; ++g) {
    __m512i v[4];
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; ++c) v[c] = _mm512_load_si512(b + (g * 4 + c) * 64);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * room + g * 4, 4);
      __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (size_t c = 0; c < 4; ++c) acc[r][c] = _mm512_dpbusd_epi32(acc[r][c], v[c], x);
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) {
    const __m512i shifted = _mm512_set1_epi32(128 * token_sums[r]);
    const __m512 scale = _mm512_set1_ps(token_scales[r]);
    float* y = out.y + (first + r) * out.stride;
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; ++c) {
      if (c * 16 >= out.count) break;
      const __mmask16 there = first16(out.count - c * 16);
      __m512 v = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[r][c], shifted));
      v = _mm512_mul_ps(_mm512_mul_ps(v, _mm512_maskz_loadu_ps(there, out.scales + c * 16)), scale);
      if (out.bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(there, out.bias + c * 16));
      _mm512_mask_storeu_ps(y + c * 16, there, v);
    }
  }
}

// Every token by one panel of channels, packed [k/4][64][4].
AVX512 inline void multiply_panel(const Tokens& t, size_t m, const uint8_t* panel, size_t groups,
                         const Out& out) {
  size_t i = 0;
  const auto at = [&](size_t row) { return t.codes + row * t.room; };
  for (; i + 6 <= m; i += 6)
    byte_tile<6>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i);
  switch (m - i) {
    case 5: byte_tile<5>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i); break;
    case 4: byte_tile<4>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i); break;
    case 3: byte_tile<3>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i); break;
    case 2: byte_tile<2>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i); break;
    case 1: byte_tile<1>(at(i), t.room, panel, groups, t.scales + i, t.sums + i, out, i); break;
    default: break;
  }
}

// Every token by every panel of the products' channels, and with a gate what it makes of them.
// pack(product, first, count, panel, scales) fills a panel from a product's channels and returns
// their scales, which may lie in `scales`, of 64.
template <typename Pack>
void by_panels(const Tokens& t, size_t m, size_t groups, const Product* products, size_t count,
               Gate gate, const Parallel& parallel, Pack&& pack) {
  const auto panels = [](const Product& p) { return (p.n + kPanel - 1) / kPanel; };
  struct Packed {
    const uint8_t* panel;
    Out out;
    alignas(64) float scales[kPanel];
  };
  const auto packed = [&](const Product& p, size_t index, uint8_t* panel, Packed* made) {
    const size_t first = index * kPanel, channels = std::min(kPanel, p.n - first);
    const float* scales = pack(p, first, channels, panel, made->scales);
    made->panel = panel;
    made->out = {scales, p.bias ? p.bias + first : nullptr, p.y + first, p.n, channels};
  };
  if (gate == Gate::none) {
    size_t all = 0;
    for (size_t i = 0; i < count; ++i) all += panels(products[i]);
    each(parallel, all, [&](size_t index) {
      static thread_local Scratch<uint8_t> room;
      const Product* p = products;
      for (; index >= panels(*p); ++p) index -= panels(*p);
      Packed made;
      packed(*p, index, room.at_least(groups * 4 * kPanel), &made);
      multiply_panel(t, m, made.panel, groups, made.out);
    });
    return;
  }
  constexpr size_t kRows = 48;  // tokens whose products stay near until they are gated
  each(parallel, panels(products[0]), [&](size_t index) {
    static thread_local Scratch<uint8_t> room;
    uint8_t* panel = room.at_least(count * groups * 4 * kPanel);
    alignas(64) float beside[kRows * kPanel];
    Packed gates, lets;
    packed(products[0], index, panel, &gates);
    if (count > 1) packed(products[1], index, panel + groups * 4 * kPanel, &lets);
    for (size_t row = 0; row < m; row += kRows) {
      const Tokens some{t.codes + row * t.room, t.scales + row, t.sums + row, t.room};
      const size_t rows = std::min(kRows, m - row);
      Out out = gates.out;
      out.y += row * out.stride;
      multiply_panel(some, rows, gates.panel, groups, out);
      lets.out.y = beside, lets.out.stride = kPanel;
      if (count > 1) multiply_panel(some, rows, lets.panel, groups, lets.out);
      gate_rows(gate, rows, out.count, count > 1 ? beside : nullptr, kPanel, out.y, out.stride);
    }
  });
}

}  // namespace vlmc
