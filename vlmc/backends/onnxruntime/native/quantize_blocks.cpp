// Weights to blocks as the quantizers of vlmc/quantizers/ make them, to the last bit:
// the same operations on float32 in the same order. The intrinsics that name a rounding are never
// fused.
#include <algorithm>
#include <cstring>

#include "quantize.h"

namespace vlmc {
namespace {

AVX512_INLINE float first(__m512 x) { return _mm512_cvtss_f32(x); }

// The upper half of the first 16, 8, 4 and 2 numbers, where the lower half is.
AVX512_INLINE __m512 upper8(__m512 x) { return _mm512_shuffle_f32x4(x, x, 0xee); }
AVX512_INLINE __m512 upper4(__m512 x) { return _mm512_shuffle_f32x4(x, x, 0x55); }
AVX512_INLINE __m512 upper2(__m512 x) { return _mm512_permute_ps(x, 0xee); }
AVX512_INLINE __m512 upper1(__m512 x) { return _mm512_permute_ps(x, 0x55); }

// Halves onto halves; what is in `x` is lost.
template <size_t vectors>
AVX512_INLINE float folded(__m512* x) {
  for (size_t half = vectors / 2; half; half /= 2) {
    for (size_t i = 0; i < half; ++i) x[i] = add(x[i], x[i + half]);
  }
  __m512 sum = add(x[0], upper8(x[0]));
  sum = add(sum, upper4(sum));
  sum = add(sum, upper2(sum));
  return first(add(sum, upper1(sum)));
}

// The largest number, in the first place.
AVX512_INLINE __m512 largest_of(__m512 x) {
  x = _mm512_max_ps(x, upper8(x));
  x = _mm512_max_ps(x, upper4(x));
  x = _mm512_max_ps(x, upper2(x));
  return _mm512_max_ps(x, upper1(x));
}

AVX512_INLINE float usable(float scale) { return scale < kTiny ? 1.0f : scale; }

// The nearest that float16 has, which goes no further than 65504.
AVX512_INLINE uint16_t half(float scale) {
  const __m512 most = _mm512_set1_ps(std::min(scale, kMostHalf));
  return (uint16_t)_mm256_extract_epi16(_mm512_cvtps_ph(most, kNearest), 0);
}

AVX512_INLINE float whole(uint16_t scale) {
  return first(_mm512_cvtph_ps(_mm256_set1_epi16((short)scale)));
}

// One block; its zero point is returned.
template <size_t vectors, typename Number>
AVX512_INLINE uint8_t quantize_block4(const Number* w, uint8_t* codes, uint16_t* scale, Sums* sums) {
  __m512 v[vectors], q[vectors], product[vectors];
  __m512 down = _mm512_setzero_ps(), up = down;  // how far the block reaches below 0 and above
  for (size_t i = 0; i < vectors; ++i) {
    v[i] = numbers(w + 16 * i, 0xffff);
    down = _mm512_max_ps(down, sub(_mm512_setzero_ps(), v[i]));
    up = _mm512_max_ps(up, v[i]);
  }
  const __m512 share = _mm512_set1_ps(kShare);
  down = mul(largest_of(down), share);
  up = mul(largest_of(up), share);
  float step = usable(first(add(up, down)) / 15.0f);
  const __m512 top = _mm512_set1_ps(15.0f);
  __m512 zero = _mm512_roundscale_ps(_mm512_set1_ps(first(down) / step), kNearest);
  zero = _mm512_min_ps(_mm512_max_ps(zero, _mm512_setzero_ps()), top);
  const __m512 from = sub(_mm512_setzero_ps(), zero), to = sub(top, zero);
  for (int fit = 0;; ++fit) {
    if (fit == 2) step = usable(whole(*scale = half(step)));
    const __m512 by = _mm512_set1_ps(step);
    for (size_t i = 0; i < vectors; ++i) {
      const __m512 code = _mm512_roundscale_ps(_mm512_div_ps(v[i], by), kNearest);
      q[i] = _mm512_min_ps(_mm512_max_ps(code, from), to);
    }
    if (fit == 2) break;
    for (size_t i = 0; i < vectors; ++i) product[i] = mul(v[i], q[i]);
    const float along = folded<vectors>(product);
    for (size_t i = 0; i < vectors; ++i) product[i] = mul(q[i], q[i]);
    const float norm = folded<vectors>(product);
    step = usable(norm > 0 ? along / norm : step);
  }
  const __m512 by = _mm512_set1_ps(step);
  for (size_t i = 0; i < vectors; ++i) {
    count_loss(mul(q[i], by), v[i], sums);
    const __m512i whole = _mm512_cvtps_epi32(add(q[i], zero));
    // Of each pair of lanes the second one's code goes above the first one's.
    const __m512i pairs = _mm512_or_si512(whole, _mm512_srli_epi64(whole, 28));
    _mm_storel_epi64((__m128i*)(codes + 8 * i), _mm512_cvtepi64_epi8(pairs));
  }
  return (uint8_t)first(zero);
}

template <size_t vectors, typename Number>
AVX512_INLINE void quantize_block8(const Number* w, uint8_t* codes, uint16_t* scale, Sums* sums) {
  __m512 reach = _mm512_setzero_ps();
  for (size_t i = 0; i < vectors; ++i) {
    reach = _mm512_max_ps(reach, _mm512_abs_ps(numbers(w + 16 * i, 0xffff)));
  }
  const __m512 by = _mm512_set1_ps(usable(whole(*scale = half(first(largest_of(reach)) / 127.0f))));
  const __m512 top = _mm512_set1_ps(127.0f), from = sub(_mm512_setzero_ps(), top);
  for (size_t i = 0; i < vectors; ++i) {
    const __m512 v = numbers(w + 16 * i, 0xffff);
    const __m512 nearest = _mm512_roundscale_ps(_mm512_div_ps(v, by), kNearest);
    const __m512 q = _mm512_min_ps(_mm512_max_ps(nearest, from), top);
    count_loss(mul(q, by), v, sums);
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(q), _mm512_set1_epi32(128));
    _mm_storeu_si128((__m128i*)(codes + 16 * i), _mm512_cvtepi32_epi8(whole));
  }
}

// zero_points is null for 8 bits.
template <size_t block, typename Number>
AVX512 void quantize(const Number* w, size_t rows, size_t columns, bool panels, uint8_t* codes,
                     uint16_t* scales, uint8_t* zero_points, double* loss) {
  const size_t blocks = (columns + block - 1) / block, pairs = (blocks + 1) / 2;
  const size_t bytes = zero_points ? block / 2 : block;  // of a block's codes
  const size_t lanes = panels ? kLanes : 1;
  Sums sums = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_ps()};
  for (size_t row = 0; row < rows; ++row) {
    const size_t panel = row / lanes, lane = row % lanes;
    for (size_t b = 0; b < blocks; ++b) {
      const Number* from = w + row * columns + b * block;
      Number padded[block];
      const size_t there = std::min(block, columns - b * block);
      if (there < block) {
        std::memset(padded, 0, sizeof(padded));
        std::memcpy(padded, from, there * sizeof(Number));
        from = padded;
      }
      uint8_t made[block];
      uint16_t* const scale = scales + (panel * blocks + b) * lanes + lane;
      if (zero_points) {
        const uint8_t zero = quantize_block4<block / 16>(from, made, scale, &sums);
        uint8_t* const pair = zero_points + (panel * pairs + b / 2) * lanes + lane;
        *pair = b % 2 ? *pair | (uint8_t)(zero << 4) : zero;
      } else {
        quantize_block8<block / 16>(from, made, scale, &sums);
      }
      uint8_t* const to = codes + (panel * blocks + b) * lanes * bytes + lane * 4;
      for (size_t i = 0; i < bytes; i += 4) std::memcpy(to + i * lanes, made + i, 4);
    }
  }
  write_loss(sums, loss);
}

template <typename Number>
void quantize(const Number* w, size_t rows, size_t columns, size_t block, bool panels,
              uint8_t* codes, uint16_t* scales, uint8_t* zero_points, float* restored,
              double* loss) {
  if (panels && zero_points)
    return quantize_panels(w, rows, columns, block, codes, scales, zero_points, restored, loss);
  const auto made = block == 16   ? quantize<16, Number>
                    : block == 32 ? quantize<32, Number>
                    : block == 64 ? quantize<64, Number>
                    : block == 128 ? quantize<128, Number>
                                   : quantize<256, Number>;
  made(w, rows, columns, panels, codes, scales, zero_points, loss);
}

}  // namespace

void quantize_blocks(const void* w, bool bfloat16, size_t rows, size_t columns, size_t block,
                     bool panels, uint8_t* codes, uint16_t* scales, uint8_t* zero_points,
                     float* restored, double* loss) {
  const auto made = [&](auto* numbers) {
    quantize(numbers, rows, columns, block, panels, codes, scales, zero_points, restored, loss);
  };
  if (bfloat16)
    made(static_cast<const uint16_t*>(w));
  else
    made(static_cast<const float*>(w));
}

}  // namespace vlmc
