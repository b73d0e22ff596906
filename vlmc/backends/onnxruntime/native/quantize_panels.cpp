// Weights to blocks of 4 bits, of 16 channels at a time: a lane of a vector each, so that nothing is
// summed across lanes. The bits are those of quantize_blocks.cpp.
#include <cstring>

#include "float_tile.h"
#include "quantize.h"

namespace vlmc {
namespace {

constexpr float kTop = 15.0f;

LANES_INLINE Floats usable(Floats scale) {
  const Mask tiny = compare<_CMP_LT_OQ>(scale, floats(kTiny));
  return select(scale, tiny, floats(1.0f));
}

// v[block][16] = rows' numbers from `from` on, `columns` apart; zeros where there are none.
template <size_t block, typename Number>
LANES_INLINE void load_block(const Number* from, size_t rows, size_t columns, size_t there,
                             Floats* v) {
  for (size_t i = 0; i < block; i += 16) {
    const Mask some = i < there ? first16(there - i) : 0;
    for (size_t r = 0; r < 16; ++r)
      v[i + r] = r < rows ? numbers(from + r * columns + i, some) : floats(0);
    transpose(v + i);
  }
}

// The inverse; `v` is lost.
template <size_t block>
LANES_INLINE void store_block(Floats* v, float* to, size_t rows, size_t columns, size_t there) {
  for (size_t i = 0; i < std::min(block, there); i += 16) {
    transpose(v + i);
    for (size_t r = 0; r < rows; ++r) store(to + r * columns + i, first16(there - i), v[i + r]);
  }
}

// Whole numbers nearest to v / step, within from .. to, as division rounds them: a product with the
// inverse is off by less than 1e-5 where that decides, and division is slow.
template <size_t block>
LANES_INLINE void round_codes(const Floats* v, Floats step, Floats from, Floats to, Floats* q) {
  const Floats inverse = div(floats(1.0f), step);
  const Floats far = floats(0.5f - 1e-5f);
  // The inverse of a huge step has lost digits.
  Mask divide = compare<_CMP_NLT_UQ>(step, floats(1e30f));
  for (size_t i = 0; i < block; ++i) {
    const Floats near = mul_rounded(v[i], inverse);
    const Floats code = nearest(near);
    divide |= compare<_CMP_NLT_UQ>(abs(sub_rounded(near, code)), far);
    q[i] = min(max(code, from), to);
  }
  if (__builtin_expect(divide, 0)) {
    for (size_t i = 0; i < block; ++i) {
      const Floats code = nearest(div(v[i], step));
      q[i] = min(max(code, from), to);
    }
  }
}

// Halves onto halves; what is in `x` is lost.
template <size_t block>
LANES_INLINE Floats folded(Floats* x) {
  for (size_t half = block / 2; half; half /= 2)
    for (size_t i = 0; i < half; ++i) x[i] = add_rounded(x[i], x[i + half]);
  return x[0];
}

// The block `v` of 16 channels, `lanes` of which there are: it becomes what its codes stand for, and
// their zero points are returned.
template <size_t block>
LANES_INLINE __m128i quantize_block(Floats* v, Mask lanes, uint8_t* codes, uint16_t* scales,
                                    Sums* sums) {
  const Floats none = floats(0), top = floats(kTop);
  Floats q[block], product[block];
  Floats down = none, up = none;  // how far the block reaches below 0 and above
  for (size_t i = 0; i < block; ++i) {
    down = max(down, sub_rounded(none, v[i]));
    up = max(up, v[i]);
  }
  const Floats share = floats(kShare);
  down = mul_rounded(down, share);
  up = mul_rounded(up, share);
  Floats step = usable(div(add_rounded(up, down), top));
  Floats zero = nearest(div(down, step));
  zero = min(max(zero, none), top);
  const Floats from = sub_rounded(none, zero), to = sub_rounded(top, zero);
  for (int fit = 0; fit < 2; ++fit) {
    round_codes<block>(v, step, from, to, q);
    for (size_t i = 0; i < block; ++i) product[i] = mul_rounded(v[i], q[i]);
    const Floats along = folded<block>(product);
    for (size_t i = 0; i < block; ++i) product[i] = mul_rounded(q[i], q[i]);
    const Floats norm = folded<block>(product);
    const Mask some = compare<_CMP_GT_OQ>(norm, none);
    step = usable(div(step, some, along, norm));
  }
  const __m256i halves = to_half(min(step, floats(kMostHalf)));
  store_halves(scales, lanes, halves);
  step = usable(from_half(halves));
  round_codes<block>(v, step, from, to, q);
  for (size_t i = 0; i < block; i += 8) {
    Words word = words(0);
    for (size_t j = 0; j < 8; ++j) {
      const Floats restored = mul_rounded(q[i + j], step);
      count_loss(restored, v[i + j], sums);
      v[i + j] = restored;
      const Words code = to_words(add_rounded(q[i + j], zero));
      word = bit_or(word, shift_left(code, (unsigned)(4 * j)));
    }
    store_words(codes + i / 8 * kLanes * 4, lanes, word);
  }
  return to_bytes(to_words(zero));
}

template <size_t block, typename Number>
LANES void quantize(const Number* w, size_t rows, size_t columns, uint8_t* codes, uint16_t* scales,
                    uint8_t* zero_points, float* restored, double* loss) {
  const size_t blocks = (columns + block - 1) / block, pairs = (blocks + 1) / 2;
  Sums sums = {doubles(0), doubles(0), floats(0)};
  for (size_t row = 0; row < rows; row += kLanes) {
    const size_t panel = row / kLanes, count = std::min(kLanes, rows - row);
    const Mask lanes = first16(count);
    __m128i before = _mm_setzero_si128();
    for (size_t b = 0; b < blocks; ++b) {
      Floats v[block];
      load_block<block>(w + row * columns + b * block, count, columns, columns - b * block, v);
      const size_t at = (panel * blocks + b) * kLanes;
      const __m128i zero =
          quantize_block<block>(v, lanes, codes + at * block / 2, scales + at, &sums);
      before = b % 2 ? _mm_or_si128(before, _mm_slli_epi16(zero, 4)) : zero;
      if (restored)
        store_block<block>(v, restored + row * columns + b * block, count, columns,
                           columns - b * block);
      store_bytes(zero_points + (panel * pairs + b / 2) * kLanes, lanes, before);
    }
  }
  write_loss(sums, loss);
}

}  // namespace

template <typename Number>
void quantize_panels(const Number* w, size_t rows, size_t columns, size_t block, uint8_t* codes,
                     uint16_t* scales, uint8_t* zero_points, float* restored, double* loss) {
  const auto made = block == 16   ? quantize<16, Number>
                    : block == 32 ? quantize<32, Number>
                    : block == 64 ? quantize<64, Number>
                    : block == 128 ? quantize<128, Number>
                                   : quantize<256, Number>;
  made(w, rows, columns, codes, scales, zero_points, restored, loss);
}

template void quantize_panels(const float*, size_t, size_t, size_t, uint8_t*, uint16_t*, uint8_t*,
                              float*, double*);
template void quantize_panels(const uint16_t*, size_t, size_t, size_t, uint8_t*, uint16_t*, uint8_t*,
                              float*, double*);

}  // namespace vlmc
