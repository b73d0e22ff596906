// Weights to blocks of 4 bits, of 16 channels at a time: a lane of a vector each, so that nothing is
// summed across lanes. The bits are those of quantize_blocks.cpp.
#include <cstring>

#include "float_tile.h"
#include "quantize.h"

namespace vlmc {
namespace {

constexpr float kTop = 15.0f;

AVX512_INLINE __m512 usable(__m512 scale) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(scale, _mm512_set1_ps(kTiny), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(scale, tiny, _mm512_set1_ps(1.0f));
}

// v[block][16] = rows' numbers from `from` on, `columns` apart; zeros where there are none.
template <size_t block, typename Number>
AVX512_INLINE void load_block(const Number* from, size_t rows, size_t columns, size_t there,
                              __m512* v) {
  for (size_t i = 0; i < block; i += 16) {
    const __mmask16 some = i < there ? first16(there - i) : 0;
    for (size_t r = 0; r < 16; ++r)
      v[i + r] = r < rows ? numbers(from + r * columns + i, some) : _mm512_setzero_ps();
    transpose(v + i);
  }
}

// The inverse; `v` is lost.
template <size_t block>
AVX512_INLINE void store_block(__m512* v, float* to, size_t rows, size_t columns, size_t there) {
  for (size_t i = 0; i < std::min(block, there); i += 16) {
    transpose(v + i);
    for (size_t r = 0; r < rows; ++r)
      _mm512_mask_storeu_ps(to + r * columns + i, first16(there - i), v[i + r]);
  }
}

// Whole numbers nearest to v / step, within from .. to, as division rounds them: a product with the
// inverse is off by less than 1e-5 where that decides, and division is slow.
template <size_t block>
AVX512_INLINE void round_codes(const __m512* v, __m512 step, __m512 from, __m512 to, __m512* q) {
  const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), step);
  const __m512 far = _mm512_set1_ps(0.5f - 1e-5f);
  // The inverse of a huge step has lost digits.
  __mmask16 divide = _mm512_cmp_ps_mask(step, _mm512_set1_ps(1e30f), _CMP_NLT_UQ);
  for (size_t i = 0; i < block; ++i) {
    const __m512 near = mul(v[i], inverse);
    const __m512 code = _mm512_roundscale_ps(near, kNearest);
    divide |= _mm512_cmp_ps_mask(_mm512_abs_ps(sub(near, code)), far, _CMP_NLT_UQ);
    q[i] = _mm512_min_ps(_mm512_max_ps(code, from), to);
  }
  if (__builtin_expect(divide, 0)) {
    for (size_t i = 0; i < block; ++i) {
      const __m512 code = _mm512_roundscale_ps(_mm512_div_ps(v[i], step), kNearest);
      q[i] = _mm512_min_ps(_mm512_max_ps(code, from), to);
    }
  }
}

// Halves onto halves; what is in `x` is lost.
template <size_t block>
AVX512_INLINE __m512 folded(__m512* x) {
  for (size_t half = block / 2; half; half /= 2)
    for (size_t i = 0; i < half; ++i) x[i] = add(x[i], x[i + half]);
  return x[0];
}

// The block `v` of 16 channels, `lanes` of which there are: it becomes what its codes stand for, and
// their zero points are returned.
template <size_t block>
AVX512_INLINE __m128i quantize_block(__m512* v, __mmask16 lanes, uint8_t* codes,
                                     uint16_t* scales, Sums* sums) {
  const __m512 none = _mm512_setzero_ps(), top = _mm512_set1_ps(kTop);
  __m512 q[block], product[block];
  __m512 down = none, up = none;  // how far the block reaches below 0 and above
  for (size_t i = 0; i < block; ++i) {
    down = _mm512_max_ps(down, sub(none, v[i]));
    up = _mm512_max_ps(up, v[i]);
  }
  const __m512 share = _mm512_set1_ps(kShare);
  down = mul(down, share);
  up = mul(up, share);
  __m512 step = usable(_mm512_div_ps(add(up, down), top));
  __m512 zero = _mm512_roundscale_ps(_mm512_div_ps(down, step), kNearest);
  zero = _mm512_min_ps(_mm512_max_ps(zero, none), top);
  const __m512 from = sub(none, zero), to = sub(top, zero);
  for (int fit = 0; fit < 2; ++fit) {
    round_codes<block>(v, step, from, to, q);
    for (size_t i = 0; i < block; ++i) product[i] = mul(v[i], q[i]);
    const __m512 along = folded<block>(product);
    for (size_t i = 0; i < block; ++i) product[i] = mul(q[i], q[i]);
    const __m512 norm = folded<block>(product);
    const __mmask16 some = _mm512_cmp_ps_mask(norm, none, _CMP_GT_OQ);
    step = usable(_mm512_mask_div_ps(step, some, along, norm));
  }
  const __m256i halves = _mm512_cvtps_ph(_mm512_min_ps(step, _mm512_set1_ps(kMostHalf)), kNearest);
  _mm256_mask_storeu_epi16(scales, lanes, halves);
  step = usable(_mm512_cvtph_ps(halves));
  round_codes<block>(v, step, from, to, q);
  for (size_t i = 0; i < block; i += 8) {
    __m512i word = _mm512_setzero_si512();
    for (size_t j = 0; j < 8; ++j) {
      const __m512 restored = mul(q[i + j], step);
      count_loss(restored, v[i + j], sums);
      v[i + j] = restored;
      const __m512i code = _mm512_cvtps_epi32(add(q[i + j], zero));
      word = _mm512_or_si512(word, _mm512_slli_epi32(code, (unsigned)(4 * j)));
    }
    _mm512_mask_storeu_epi32(codes + i / 8 * kLanes * 4, lanes, word);
  }
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(zero));
}

template <size_t block, typename Number>
AVX512 void quantize(const Number* w, size_t rows, size_t columns, uint8_t* codes, uint16_t* scales,
                     uint8_t* zero_points, float* restored, double* loss) {
  const size_t blocks = (columns + block - 1) / block, pairs = (blocks + 1) / 2;
  Sums sums = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_ps()};
  for (size_t row = 0; row < rows; row += kLanes) {
    const size_t panel = row / kLanes, count = std::min(kLanes, rows - row);
    const __mmask16 lanes = first16(count);
    __m128i before = _mm_setzero_si128();
    for (size_t b = 0; b < blocks; ++b) {
      __m512 v[block];
      load_block<block>(w + row * columns + b * block, count, columns, columns - b * block, v);
      const size_t at = (panel * blocks + b) * kLanes;
      const __m128i zero =
          quantize_block<block>(v, lanes, codes + at * block / 2, scales + at, &sums);
      before = b % 2 ? _mm_or_si128(before, _mm_slli_epi16(zero, 4)) : zero;
      if (restored)
        store_block<block>(v, restored + row * columns + b * block, count, columns,
                           columns - b * block);
      _mm_mask_storeu_epi8(zero_points + (panel * pairs + b / 2) * kLanes, lanes, before);
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
