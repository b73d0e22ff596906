#pragma once
// Lanes of one register of AVX-512.

#define LANES __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prfchw")))
#define LANE LANES __attribute__((always_inline)) static inline

namespace vlmc {

using Floats = __m512;
using Words = __m512i;    // of 32 bits; or 32 of 16, or 64 bytes
using Doubles = __m512d;  // eight
using Mask = __mmask16;

constexpr size_t kAbreast = 4;  // vectors that a tile of six rows has beside each other

LANE Floats floats(float x) { return _mm512_set1_ps(x); }
LANE Words words(int32_t x) { return _mm512_set1_epi32(x); }
LANE Words shorts(int16_t x) { return _mm512_set1_epi16(x); }
LANE Words bytes(int8_t x) { return _mm512_set1_epi8(x); }
LANE Words repeated(__m128i x) { return _mm512_broadcast_i32x4(x); }
LANE Doubles doubles(double x) { return _mm512_set1_pd(x); }
LANE Words lane_numbers() {
  return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

LANE Floats load(const float* from) { return _mm512_loadu_ps(from); }
LANE Floats load(Mask some, const float* from) { return _mm512_maskz_loadu_ps(some, from); }
LANE Words load_words(const void* from) { return _mm512_loadu_si512(from); }
LANE Words load_words(Mask some, const void* from) { return _mm512_maskz_loadu_epi32(some, from); }
LANE __m256i load_halves(const uint16_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
LANE __m256i load_halves(Mask some, const uint16_t* from) {
  return _mm256_maskz_loadu_epi16(some, from);
}
LANE void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
LANE void store(float* to, Mask some, Floats x) { _mm512_mask_storeu_ps(to, some, x); }
LANE void store(double* to, Doubles x) { _mm512_storeu_pd(to, x); }
LANE void store_words(void* to, Words x) { _mm512_storeu_si512(to, x); }
LANE void store_words(void* to, Mask some, Words x) { _mm512_mask_storeu_epi32(to, some, x); }
LANE void store_halves(uint16_t* to, Mask some, __m256i x) {
  _mm256_mask_storeu_epi16(to, some, x);
}
LANE void store_bytes(void* to, Mask some, __m128i x) { _mm_mask_storeu_epi8(to, some, x); }
// Words as signed bytes, the nearest there are.
LANE void store_bytes(void* to, Mask some, Words x) {
  _mm512_mask_cvtsepi32_storeu_epi8(to, some, x);
}

LANE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
LANE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
LANE Floats sub(Mask some, Floats a, Floats b) { return _mm512_maskz_sub_ps(some, a, b); }
LANE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
LANE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
LANE Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
LANE Floats fmsub(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
LANE Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
LANE Doubles fmadd(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
// Rounded by itself: the compiler fuses it with nothing.
LANE Floats add_rounded(Floats a, Floats b) { return _mm512_add_round_ps(a, b, 8); }
LANE Floats sub_rounded(Floats a, Floats b) { return _mm512_sub_round_ps(a, b, 8); }
LANE Floats mul_rounded(Floats a, Floats b) { return _mm512_mul_round_ps(a, b, 8); }
// The second one where either is no number.
LANE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
LANE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
LANE Floats abs(Floats x) { return _mm512_abs_ps(x); }
LANE Floats nearest(Floats x) { return _mm512_roundscale_ps(x, 8); }
// x less the largest whole number that is not above it; 0 of infinity.
LANE Floats fraction(Floats x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
// x times 2 to the power of the largest whole number that is not above n, n < 128. What has fewer
// digits than others may be 0.
LANE Floats scalef(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
LANE Floats reciprocal_estimate(Floats x) { return _mm512_rcp14_ps(x); }
LANE float reduce_add(Floats x) { return _mm512_reduce_add_ps(x); }
LANE float reduce_max(Floats x) { return _mm512_reduce_max_ps(x); }
LANE float first(Floats x) { return _mm512_cvtss_f32(x); }

LANE Words add(Words a, Words b) { return _mm512_add_epi32(a, b); }
LANE Words sub(Words a, Words b) { return _mm512_sub_epi32(a, b); }
LANE Words max(Words a, Words b) { return _mm512_max_epi32(a, b); }
LANE Words sub_bytes(Words a, Words b) { return _mm512_sub_epi8(a, b); }
LANE Words mul_high_rounded(Words a, Words b) { return _mm512_mulhrs_epi16(a, b); }
LANE Words bit_and(Words a, Words b) { return _mm512_and_si512(a, b); }
LANE Words bit_or(Words a, Words b) { return _mm512_or_si512(a, b); }
LANE Words bit_xor(Words a, Words b) { return _mm512_xor_si512(a, b); }
LANE Floats bit_and(Floats a, Floats b) { return _mm512_and_ps(a, b); }
LANE Floats bit_or(Floats a, Floats b) { return _mm512_or_ps(a, b); }
LANE Floats bit_xor(Floats a, Floats b) { return _mm512_xor_ps(a, b); }
LANE Words shift_left(Words x, unsigned by) { return _mm512_slli_epi32(x, by); }
LANE Words shift_right(Words x, unsigned by) { return _mm512_srli_epi32(x, by); }
LANE Words shift_left16(Words x, unsigned by) { return _mm512_slli_epi16(x, by); }
LANE Words shift_right16(Words x, unsigned by) { return _mm512_srli_epi16(x, by); }
LANE Words shift_right_signed16(Words x, unsigned by) { return _mm512_srai_epi16(x, by); }
LANE Words shift_right64(Words x, unsigned by) { return _mm512_srli_epi64(x, by); }
LANE int32_t reduce_add(Words x) { return _mm512_reduce_add_epi32(x); }
LANE int32_t reduce_max(Words x) { return _mm512_reduce_max_epi32(x); }

// acc + the sum of the products of 2 numbers of 16 bits of a lane.
LANE Words dot_shorts(Words acc, Words a, Words b) { return _mm512_dpwssd_epi32(acc, a, b); }

// Weights of a byte are the unsigned operand of vpdpbusd: signed ones are shifted by kShift, and as
// many times the sum of a token's codes is taken off again.
constexpr int32_t kShift = 128;
LANE Words shifted(Words weights) { return bit_xor(weights, bytes((int8_t)0x80)); }
LANE Words shifted_by_128(Words weights) { return weights; }
// acc + the sum of the products of 4 such weights of a lane with signed codes.
LANE Words dot_weights(Words acc, Words weights, Words codes) {
  return _mm512_dpbusd_epi32(acc, weights, codes);
}

// The sum of products of weights of 4 bits with signed codes.
struct NibbleSum {
  static constexpr size_t kMost = SIZE_MAX;  // vectors before they are settled
  Words sum;

  LANES __attribute__((always_inline)) void begin() { sum = words(0); }
  LANES __attribute__((always_inline)) void add(Words weights, Words codes) {
    sum = dot_weights(sum, weights, codes);
  }
  LANES __attribute__((always_inline)) void settle() {}
};

LANE Floats to_floats(Words x) { return _mm512_cvtepi32_ps(x); }
LANE Words to_words(Floats x) { return _mm512_cvtps_epi32(x); }
LANE Words to_words(__m128i bytes) { return _mm512_cvtepu8_epi32(bytes); }
LANE Words to_words(__m256i halves) { return _mm512_cvtepu16_epi32(halves); }
LANE Floats as_floats(Words x) { return _mm512_castsi512_ps(x); }
LANE Words as_words(Floats x) { return _mm512_castps_si512(x); }
LANE Floats from_half(__m256i x) { return _mm512_cvtph_ps(x); }
LANE __m256i to_half(Floats x) { return _mm512_cvtps_ph(x, 8); }
LANE __m128i to_bytes(Words x) { return _mm512_cvtepi32_epi8(x); }
LANE __m128i to_bytes_saturated(Words x) { return _mm512_cvtsepi32_epi8(x); }
// The lowest byte of each of eight pairs of lanes.
LANE __m128i bytes_of_pairs(Words x) { return _mm512_cvtepi64_epi8(x); }
// Eight of x: the first ones, the last ones.
template <int Half>
LANE Doubles to_doubles(Floats x) {
  return _mm512_cvtps_pd(Half ? _mm512_extractf32x8_ps(x, 1) : _mm512_castps512_ps256(x));
}

template <int Op>
LANE Mask compare(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, Op);
}
// Of numbers from 0 on; of `some`.
LANE Mask less(Words a, Words b) { return _mm512_cmplt_epu32_mask(a, b); }
LANE Mask at_least(Mask some, Words a, Words b) { return _mm512_mask_cmpge_epu32_mask(some, a, b); }
// Of `some` lanes what is named behind them, of others `rest`, or 0.
LANE Floats select(Floats rest, Mask some, Floats a) { return _mm512_mask_mov_ps(rest, some, a); }
LANE Floats kept(Mask some, Floats a) { return _mm512_maskz_mov_ps(some, a); }
LANE Floats max(Floats rest, Mask some, Floats a, Floats b) {
  return _mm512_mask_max_ps(rest, some, a, b);
}
LANE Floats div(Floats rest, Mask some, Floats a, Floats b) {
  return _mm512_mask_div_ps(rest, some, a, b);
}

// Within each four lanes.
LANE Floats unpack_low(Floats a, Floats b) { return _mm512_unpacklo_ps(a, b); }
LANE Floats unpack_high(Floats a, Floats b) { return _mm512_unpackhi_ps(a, b); }
template <int Order>
LANE Floats shuffle(Floats a, Floats b) {
  return _mm512_shuffle_ps(a, b, Order);
}
template <int Order>
LANE Floats permute(Floats x) {
  return _mm512_permute_ps(x, Order);
}
LANE Words shuffle_bytes(Words x, Words order) { return _mm512_shuffle_epi8(x, order); }
// Two fours of a, then two of b.
template <int Order>
LANE Floats shuffle_fours(Floats a, Floats b) {
  return _mm512_shuffle_f32x4(a, b, Order);
}
LANE Floats broadcast_lane(Floats x, size_t lane) {
  return _mm512_permutexvar_ps(_mm512_set1_epi32((int)lane), x);
}
LANE Words broadcast_lane(Words x, size_t lane) {
  return _mm512_permutexvar_epi32(_mm512_set1_epi32((int)lane), x);
}
// Every second one of a, of 16 or of 8 bits, beginning with the first; between them those of b.
LANE Words odd16(Words a, Words b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, b); }
LANE Words odd8(Words a, Words b) { return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, a, b); }

// In its register up to here: the compiler would rather spill it.
LANE void hold(Floats& x) { asm("" : "+v"(x)); }
LANE void hold(Words& x) { asm("" : "+v"(x)); }

}  // namespace vlmc
