// Weights to blocks as the quantizers of vlmc/quantizers/ make them, to the last bit:
// the same operations on float32 in the same order. The intrinsics that name a rounding are never
// fused.
#include <algorithm>
#include <cstring>

#include "quantize.h"

namespace vlmc {
namespace {

// The upper half of the first 16, 8, 4 and 2 numbers, where the lower half is.
LANES_INLINE Floats upper8(Floats x) { return shuffle_fours<0xee>(x, x); }
LANES_INLINE Floats upper4(Floats x) { return shuffle_fours<0x55>(x, x); }
LANES_INLINE Floats upper2(Floats x) { return permute<0xee>(x); }
LANES_INLINE Floats upper1(Floats x) { return permute<0x55>(x); }

// Halves onto halves; what is in `x` is lost.
template <size_t vectors>
LANES_INLINE float folded(Floats* x) {
  for (size_t half = vectors / 2; half; half /= 2) {
    for (size_t i = 0; i < half; ++i) x[i] = add_rounded(x[i], x[i + half]);
  }
  Floats sum = add_rounded(x[0], upper8(x[0]));
  sum = add_rounded(sum, upper4(sum));
  sum = add_rounded(sum, upper2(sum));
  return first(add_rounded(sum, upper1(sum)));
}

// The largest number, in the first place.
LANES_INLINE Floats largest_of(Floats x) {
  x = max(x, upper8(x));
  x = max(x, upper4(x));
  x = max(x, upper2(x));
  return max(x, upper1(x));
}

LANES_INLINE float usable(float scale) { return scale < kTiny ? 1.0f : scale; }

// The nearest that float16 has, which goes no further than 65504.
LANES_INLINE uint16_t half(float scale) {
  const Floats most = floats(std::min(scale, kMostHalf));
  return (uint16_t)_mm256_extract_epi16(to_half(most), 0);
}

LANES_INLINE float whole(uint16_t scale) {
  return first(from_half(_mm256_set1_epi16((short)scale)));
}

// One block; its zero point is returned.
template <size_t vectors, typename Number>
LANES_INLINE uint8_t quantize_block4(const Number* w, uint8_t* codes, uint16_t* scale, Sums* sums) {
  Floats v[vectors], q[vectors], product[vectors];
  Floats down = floats(0), up = down;  // how far the block reaches below 0 and above
  for (size_t i = 0; i < vectors; ++i) {
    v[i] = numbers(w + 16 * i, 0xffff);
    down = max(down, sub_rounded(floats(0), v[i]));
    up = max(up, v[i]);
  }
  const Floats share = floats(kShare);
  down = mul_rounded(largest_of(down), share);
  up = mul_rounded(largest_of(up), share);
  float step = usable(first(add_rounded(up, down)) / 15.0f);
  const Floats top = floats(15.0f);
  Floats zero = nearest(floats(first(down) / step));
  zero = min(max(zero, floats(0)), top);
  const Floats from = sub_rounded(floats(0), zero), to = sub_rounded(top, zero);
  for (int fit = 0;; ++fit) {
    if (fit == 2) step = usable(whole(*scale = half(step)));
    const Floats by = floats(step);
    for (size_t i = 0; i < vectors; ++i) {
      const Floats code = nearest(div(v[i], by));
      q[i] = min(max(code, from), to);
    }
    if (fit == 2) break;
    for (size_t i = 0; i < vectors; ++i) product[i] = mul_rounded(v[i], q[i]);
    const float along = folded<vectors>(product);
    for (size_t i = 0; i < vectors; ++i) product[i] = mul_rounded(q[i], q[i]);
    const float norm = folded<vectors>(product);
    step = usable(norm > 0 ? along / norm : step);
  }
  const Floats by = floats(step);
  for (size_t i = 0; i < vectors; ++i) {
    count_loss(mul_rounded(q[i], by), v[i], sums);
    const Words whole = to_words(add_rounded(q[i], zero));
    // Of each pair of lanes the second one's code goes above the first one's.
    const Words pairs = bit_or(whole, shift_right64(whole, 28));
    _mm_storel_epi64((__m128i*)(codes + 8 * i), bytes_of_pairs(pairs));
  }
  return (uint8_t)first(zero);
}

template <size_t vectors, typename Number>
LANES_INLINE void quantize_block8(const Number* w, uint8_t* codes, uint16_t* scale, Sums* sums) {
  Floats reach = floats(0);
  for (size_t i = 0; i < vectors; ++i) {
    reach = max(reach, abs(numbers(w + 16 * i, 0xffff)));
  }
  const Floats by = floats(usable(whole(*scale = half(first(largest_of(reach)) / 127.0f))));
  const Floats top = floats(127.0f), from = sub_rounded(floats(0), top);
  for (size_t i = 0; i < vectors; ++i) {
    const Floats v = numbers(w + 16 * i, 0xffff);
    const Floats q = min(max(nearest(div(v, by)), from), top);
    count_loss(mul_rounded(q, by), v, sums);
    const Words whole = add(to_words(q), words(128));
    _mm_storeu_si128((__m128i*)(codes + 16 * i), to_bytes(whole));
  }
}

// zero_points is null for 8 bits.
template <size_t block, typename Number>
LANES void quantize(const Number* w, size_t rows, size_t columns, bool panels, uint8_t* codes,
                    uint16_t* scales, uint8_t* zero_points, double* loss) {
  const size_t blocks = (columns + block - 1) / block, pairs = (blocks + 1) / 2;
  const size_t bytes = zero_points ? block / 2 : block;  // of a block's codes
  const size_t lanes = panels ? kLanes : 1;
  Sums sums = {doubles(0), doubles(0), floats(0)};
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
