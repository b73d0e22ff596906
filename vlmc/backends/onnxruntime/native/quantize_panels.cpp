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

// A step between codes, its inverse, and the least and the largest code.
struct Codes {
  Floats step, inverse, from, to;
};

LANES_INLINE Codes codes_of(Floats step, Floats from, Floats to) {
  return {step, div(floats(1.0f), step), from, to};
}

// The whole number nearest to v / step. Division is slow: where it is not asked for, a product with the
// inverse serves, and `far` grows to how far that is from the number.
template <bool divided>
LANES_INLINE Floats code(Floats v, const Codes& codes, Floats* far) {
  const Floats share = divided ? div(v, codes.step) : mul_rounded(v, codes.inverse);
  const Floats made = nearest(share);
  if (!divided) *far = max(abs(sub_rounded(share, made)), *far);
  return min(max(made, codes.from), codes.to);
}

// Whether a product may have been rounded to another number than the quotient, from which it is off by
// less than 1e-5 where that decides. The inverse of a huge step has lost digits.
LANES_INLINE bool unsure(const Codes& codes, Floats far) {
  return compare<_CMP_NLT_UQ>(far, floats(0.5f - 1e-5f)) |
         compare<_CMP_NLT_UQ>(codes.step, floats(1e30f));
}

// Sums of weights times codes, and of squares of codes.
struct Fit {
  Floats along, norm;
};

LANES_INLINE Fit both(const Fit& a, const Fit& b) {
  return {add_rounded(a.along, b.along), add_rounded(a.norm, b.norm)};
}

// Of eight weights, `stride` apart: halves onto halves, none of which is kept in memory.
template <bool divided, size_t count, size_t stride>
LANES_INLINE Fit fit_few(const Floats* v, const Codes& codes, Floats* far) {
  if constexpr (count == 1) {
    const Floats q = code<divided>(*v, codes, far);
    return {mul_rounded(*v, q), mul_rounded(q, q)};
  } else {
    const Fit a = fit_few<divided, count / 2, 2 * stride>(v, codes, far);
    return both(a, fit_few<divided, count / 2, 2 * stride>(v + stride, codes, far));
  }
}

template <bool divided, size_t stride>
LANES __attribute__((noinline)) Fit fit_eight(const Floats* v, const Codes& codes, Floats* far) {
  return fit_few<divided, 8, stride>(v, codes, far);
}

template <bool divided, size_t count, size_t stride>
LANES_INLINE Fit fit_all(const Floats* v, const Codes& codes, Floats* far) {
  if constexpr (count == 8) {
    return fit_eight<divided, stride>(v, codes, far);
  } else {
    const Fit a = fit_all<divided, count / 2, 2 * stride>(v, codes, far);
    return both(a, fit_all<divided, count / 2, 2 * stride>(v + stride, codes, far));
  }
}

template <size_t block>
LANES_INLINE Fit fit(const Floats* v, const Codes& codes) {
  Floats far = floats(0);
  const Fit made = fit_all<false, block, 1>(v, codes, &far);
  return __builtin_expect(unsure(codes, far), 0) ? fit_all<true, block, 1>(v, codes, &far) : made;
}

template <size_t block>
LANES_INLINE void round_codes(const Floats* v, const Codes& codes, Floats* q) {
  Floats far = floats(0);
  for (size_t i = 0; i < block; ++i) q[i] = code<false>(v[i], codes, &far);
  if (__builtin_expect(unsure(codes, far), 0))
    for (size_t i = 0; i < block; ++i) q[i] = code<true>(v[i], codes, &far);
}

// The block `v` of 16 channels, `lanes` of which there are: it becomes what its codes stand for, and
// their zero points are returned.
template <size_t block>
LANES_INLINE __m128i quantize_block(Floats* v, Mask lanes, uint8_t* codes, uint16_t* scales,
                                    Sums* sums) {
  const Floats none = floats(0), top = floats(kTop);
  Floats q[block];
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
  for (int turn = 0; turn < 2; ++turn) {
    const Fit made = fit<block>(v, codes_of(step, from, to));
    const Mask some = compare<_CMP_GT_OQ>(made.norm, none);
    step = usable(div(step, some, made.along, made.norm));
  }
  const __m256i halves = to_half(min(step, floats(kMostHalf)));
  store_halves(scales, lanes, halves);
  step = usable(from_half(halves));
  round_codes<block>(v, codes_of(step, from, to), q);
  for (size_t i = 0; i < block; i += 8) {
    Words word = words(0);
    for (size_t j = 0; j < 8; ++j) {
      const Words code = to_words(add_rounded(q[i + j], zero));
      word = bit_or(word, shift_left(code, (unsigned)(4 * j)));
    }
    store_words(codes + i / 8 * kLanes * 4, lanes, word);
  }
  for (size_t i = 0; i < block; ++i) {
    Floats restored = mul_rounded(q[i], step);
    hold(restored);
    count_loss(restored, v[i], sums);
    v[i] = restored;
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
