#pragma once
// Lanes of two registers of AVX2. A Mask is of bits here too: masks of the first lanes, which is
// what loads and stores are given, cost little, as nearly all are whole.

#define LANES __attribute__((target("avx2,fma,f16c,prfchw")))
#define LANE LANES __attribute__((always_inline)) static inline

namespace vlmc {

struct Floats {
  __m256 low, high;
};
struct Words {  // of 32 bits; or 32 of 16, or 64 bytes
  __m256i low, high;
};
struct Doubles {  // eight
  __m256d low, high;
};
using Mask = uint16_t;

constexpr size_t kAbreast = 1;  // vectors that a tile of six rows has beside each other

// All bits of the lanes of eight that are there.
LANE __m256i eight_of(unsigned bits) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), each), each);
}
LANE bool whole(Mask some) { return some == 0xffff; }

LANE Floats floats(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LANE Words words(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LANE Words shorts(int16_t x) { return {_mm256_set1_epi16(x), _mm256_set1_epi16(x)}; }
LANE Words bytes(int8_t x) { return {_mm256_set1_epi8(x), _mm256_set1_epi8(x)}; }
LANE Words repeated(__m128i x) {
  return {_mm256_broadcastsi128_si256(x), _mm256_broadcastsi128_si256(x)};
}
LANE Doubles doubles(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
LANE Words lane_numbers() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
          _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}

LANE Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
LANE Floats load(Mask some, const float* from) {
  if (whole(some)) return load(from);
  return {_mm256_maskload_ps(from, eight_of(some)),
          _mm256_maskload_ps(from + 8, eight_of(some >> 8))};
}
LANE Words load_words(const void* from) {
  const __m256i* at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
LANE Words load_words(Mask some, const void* from) {
  if (whole(some)) return load_words(from);
  const int* at = static_cast<const int*>(from);
  return {_mm256_maskload_epi32(at, eight_of(some)),
          _mm256_maskload_epi32(at + 8, eight_of(some >> 8))};
}
LANE __m256i load_halves(const uint16_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
LANE __m256i load_halves(Mask some, const uint16_t* from) {
  if (whole(some)) return load_halves(from);
  alignas(32) uint16_t kept[16] = {};
  std::memcpy(kept, from, 2 * (size_t)__builtin_popcount(some));
  return load_halves(kept);
}
LANE void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
// Masked stores are slow on some CPUs.
LANE void store(float* to, Mask some, Floats x) {
  if (whole(some)) return store(to, x);
  _mm256_maskstore_ps(to, eight_of(some), x.low);
  _mm256_maskstore_ps(to + 8, eight_of(some >> 8), x.high);
}
LANE void store(double* to, Doubles x) {
  _mm256_storeu_pd(to, x.low);
  _mm256_storeu_pd(to + 4, x.high);
}
LANE void store_words(void* to, Words x) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), x.low);
  _mm256_storeu_si256(static_cast<__m256i*>(to) + 1, x.high);
}
LANE void store_words(void* to, Mask some, Words x) {
  if (whole(some)) return store_words(to, x);
  _mm256_maskstore_epi32(static_cast<int*>(to), eight_of(some), x.low);
  _mm256_maskstore_epi32(static_cast<int*>(to) + 8, eight_of(some >> 8), x.high);
}
LANE void store_halves(uint16_t* to, Mask some, __m256i x) {
  if (whole(some)) return _mm256_storeu_si256((__m256i*)to, x);
  std::memcpy(to, &x, 2 * (size_t)__builtin_popcount(some));
}
LANE void store_bytes(void* to, Mask some, __m128i x) {
  if (whole(some)) return _mm_storeu_si128(static_cast<__m128i*>(to), x);
  std::memcpy(to, &x, (size_t)__builtin_popcount(some));
}

// Sixteen of 16 bits, of words that go no further.
LANE __m256i packed(Words x) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8);
}
LANE __m128i to_bytes_saturated(Words x) {
  const __m256i all = packed(x);
  return _mm_packs_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
// Words as signed bytes, the nearest there are.
LANE void store_bytes(void* to, Mask some, Words x) {
  store_bytes(to, some, to_bytes_saturated(x));
}

LANE Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
LANE Floats sub(Floats a, Floats b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
LANE Floats mul(Floats a, Floats b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
LANE Floats div(Floats a, Floats b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
LANE Floats fmadd(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
LANE Floats fmsub(Floats a, Floats b, Floats c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
LANE Floats fnmadd(Floats a, Floats b, Floats c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
LANE Doubles fmadd(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}
// Rounded by itself: this library is compiled with -ffp-contract=off.
LANE Floats add_rounded(Floats a, Floats b) { return add(a, b); }
LANE Floats sub_rounded(Floats a, Floats b) { return sub(a, b); }
LANE Floats mul_rounded(Floats a, Floats b) { return mul(a, b); }
// The second one where either is no number.
LANE Floats max(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
LANE Floats min(Floats a, Floats b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
LANE Floats bit_and(Floats a, Floats b) {
  return {_mm256_and_ps(a.low, b.low), _mm256_and_ps(a.high, b.high)};
}
LANE Floats bit_or(Floats a, Floats b) {
  return {_mm256_or_ps(a.low, b.low), _mm256_or_ps(a.high, b.high)};
}
LANE Floats bit_xor(Floats a, Floats b) {
  return {_mm256_xor_ps(a.low, b.low), _mm256_xor_ps(a.high, b.high)};
}
LANE Floats abs(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
LANE Floats nearest(Floats x) { return {_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)}; }
LANE Floats floor(Floats x) { return {_mm256_floor_ps(x.low), _mm256_floor_ps(x.high)}; }
// x less the largest whole number that is not above it; 0 of infinity.
LANE Floats fraction(Floats x) {
  const Floats whole = floor(x), rest = sub(x, whole);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.low, whole.low, _CMP_EQ_OQ), rest.low),
          _mm256_andnot_ps(_mm256_cmp_ps(x.high, whole.high, _CMP_EQ_OQ), rest.high)};
}

LANE Words add(Words a, Words b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
LANE Words sub(Words a, Words b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
LANE Words max(Words a, Words b) {
  return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
LANE Words add16(Words a, Words b) {
  return {_mm256_add_epi16(a.low, b.low), _mm256_add_epi16(a.high, b.high)};
}
LANE Words sub16(Words a, Words b) {
  return {_mm256_sub_epi16(a.low, b.low), _mm256_sub_epi16(a.high, b.high)};
}
// Of numbers without sign.
LANE Words add_saturated16(Words a, Words b) {
  return {_mm256_adds_epu16(a.low, b.low), _mm256_adds_epu16(a.high, b.high)};
}
LANE Words max_unsigned16(Words a, Words b) {
  return {_mm256_max_epu16(a.low, b.low), _mm256_max_epu16(a.high, b.high)};
}
LANE Words mul_low16(Words a, Words b) {
  return {_mm256_mullo_epi16(a.low, b.low), _mm256_mullo_epi16(a.high, b.high)};
}
LANE Words max_bytes(Words a, Words b) {
  return {_mm256_max_epi8(a.low, b.low), _mm256_max_epi8(a.high, b.high)};
}
LANE Words add_bytes(Words a, Words b) {
  return {_mm256_add_epi8(a.low, b.low), _mm256_add_epi8(a.high, b.high)};
}
LANE Words byte_magnitudes(Words x) { return {_mm256_abs_epi8(x.low), _mm256_abs_epi8(x.high)}; }
LANE Words sub_bytes(Words a, Words b) {
  return {_mm256_sub_epi8(a.low, b.low), _mm256_sub_epi8(a.high, b.high)};
}
LANE Words mul_high_rounded(Words a, Words b) {
  return {_mm256_mulhrs_epi16(a.low, b.low), _mm256_mulhrs_epi16(a.high, b.high)};
}
LANE Words bit_and(Words a, Words b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
LANE Words bit_or(Words a, Words b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
LANE Words bit_xor(Words a, Words b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
LANE Words shift_left(Words x, unsigned by) {
  return {_mm256_slli_epi32(x.low, (int)by), _mm256_slli_epi32(x.high, (int)by)};
}
LANE Words shift_right(Words x, unsigned by) {
  return {_mm256_srli_epi32(x.low, (int)by), _mm256_srli_epi32(x.high, (int)by)};
}
LANE Words shift_left16(Words x, unsigned by) {
  return {_mm256_slli_epi16(x.low, (int)by), _mm256_slli_epi16(x.high, (int)by)};
}
LANE Words shift_right16(Words x, unsigned by) {
  return {_mm256_srli_epi16(x.low, (int)by), _mm256_srli_epi16(x.high, (int)by)};
}
LANE Words shift_right_signed16(Words x, unsigned by) {
  return {_mm256_srai_epi16(x.low, (int)by), _mm256_srai_epi16(x.high, (int)by)};
}
LANE Words shift_right64(Words x, unsigned by) {
  return {_mm256_srli_epi64(x.low, (int)by), _mm256_srli_epi64(x.high, (int)by)};
}

LANE Floats to_floats(Words x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
LANE Words to_words(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
LANE Words to_words(__m128i bytes) {
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
LANE Words to_words(__m256i halves) {
  return {_mm256_cvtepu16_epi32(_mm256_castsi256_si128(halves)),
          _mm256_cvtepu16_epi32(_mm256_extracti128_si256(halves, 1))};
}
LANE Floats as_floats(Words x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
LANE Words as_words(Floats x) { return {_mm256_castps_si256(x.low), _mm256_castps_si256(x.high)}; }
LANE Floats from_half(__m256i x) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
LANE __m256i to_half(Floats x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(x.high, 0), _mm256_cvtps_ph(x.low, 0));
}
LANE __m128i to_bytes(Words x) {
  const __m256i all = packed(bit_and(x, words(255)));
  return _mm_packus_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
// The lowest byte of each of eight pairs of lanes.
LANE __m128i bytes_of_pairs(Words x) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m256i low = _mm256_shuffle_epi8(x.low, order), high = _mm256_shuffle_epi8(x.high, order);
  return _mm_unpacklo_epi32(
      _mm_unpacklo_epi16(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)),
      _mm_unpacklo_epi16(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
// Eight of x: the first ones, the last ones.
template <int Half>
LANE Doubles to_doubles(Floats x) {
  const __m256 eight = Half ? x.high : x.low;
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(eight)),
          _mm256_cvtps_pd(_mm256_extractf128_ps(eight, 1))};
}

// x times 2 to the power of the largest whole number that is not above n, n < 128. What has fewer
// digits than others may be 0.
LANE Floats scalef(Floats x, Floats n) {
  const Floats least = max(floats(-127.0f), floor(n));  // whose power has no bits
  return mul(x, as_floats(shift_left(add(to_words(least), words(127)), 23)));
}
LANE Floats reciprocal_estimate(Floats x) { return {_mm256_rcp_ps(x.low), _mm256_rcp_ps(x.high)}; }
LANE float reduce_add(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
LANE float reduce_max(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
LANE int32_t reduce_add(Words x) {
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xee));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0x55)));
}
LANE int32_t reduce_max(Words x) {
  const __m256i eight = _mm256_max_epi32(x.low, x.high);
  const __m128i four =
      _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xee));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0x55)));
}
LANE float first(Floats x) { return _mm256_cvtss_f32(x.low); }

// In its register up to here: the compiler would rather spill it.
LANE void hold(Floats& x) { asm("" : "+x"(x.low), "+x"(x.high)); }
LANE void hold(Words& x) { asm("" : "+x"(x.low), "+x"(x.high)); }

// acc + the sum of the products of 2 numbers of 16 bits of a lane.
LANE Words dot_shorts(Words acc, Words a, Words b) {
  return add(acc, {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)});
}

// The sums of the products of two bytes each, in 16 bits; of a without sign, of b with.
LANE Words dot_bytes(Words a, Words b) {
  return {_mm256_maddubs_epi16(a.low, b.low), _mm256_maddubs_epi16(a.high, b.high)};
}

// Weights of a byte stay signed: where they are not, two products with codes exceed 16 bits.
constexpr int32_t kShift = 0;
LANE Words shifted(Words weights) { return weights; }
LANE Words shifted_by_128(Words weights) { return bit_xor(weights, bytes((int8_t)0x80)); }
// acc + the sum of the products of 4 such weights of a lane with signed codes, none of them -128.
LANE Words dot_weights(Words acc, Words weights, Words codes) {
  const Words pairs = {
      _mm256_maddubs_epi16(_mm256_abs_epi8(weights.low), _mm256_sign_epi8(codes.low, weights.low)),
      _mm256_maddubs_epi16(_mm256_abs_epi8(weights.high),
                           _mm256_sign_epi8(codes.high, weights.high))};
  return dot_shorts(acc, pairs, shorts(1));
}

// The sum of products of weights of 4 bits with signed codes: 16 bits hold those of eight bytes and
// their neighbours', 8 * 2 * 15 * 127.
struct NibbleSum {
  static constexpr size_t kMost = 4;  // vectors before they are settled, two products of each
  Words sum, pairs;

  LANES __attribute__((always_inline)) void begin() { sum = pairs = words(0); }
  LANES __attribute__((always_inline)) void add(Words weights, Words codes) {
    pairs = add16(pairs, dot_bytes(weights, codes));
    hold(pairs);  // gcc 12 adds sums up pairwise, and stores every product meanwhile
  }
  LANES __attribute__((always_inline)) void settle() {
    sum = dot_shorts(sum, pairs, shorts(1));
    pairs = words(0);
  }
};

template <int Op>
LANE Mask compare(Floats a, Floats b) {
  return (Mask)(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, Op)) |
                _mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, Op)) << 8);
}
// Of numbers from 0 on; of `some`.
LANE Mask less(Words a, Words b) {
  const Floats found =
      as_floats({_mm256_cmpgt_epi32(b.low, a.low), _mm256_cmpgt_epi32(b.high, a.high)});
  return (Mask)(_mm256_movemask_ps(found.low) | _mm256_movemask_ps(found.high) << 8);
}
LANE Mask at_least(Mask some, Words a, Words b) { return some & (Mask)~less(a, b); }
// Of `some` lanes what is named behind them, of others `rest`, or 0.
LANE Floats select(Floats rest, Mask some, Floats a) {
  return {_mm256_blendv_ps(rest.low, a.low, _mm256_castsi256_ps(eight_of(some))),
          _mm256_blendv_ps(rest.high, a.high, _mm256_castsi256_ps(eight_of(some >> 8)))};
}
LANE Floats kept(Mask some, Floats a) { return select(floats(0), some, a); }
LANE Floats sub(Mask some, Floats a, Floats b) { return kept(some, sub(a, b)); }
LANE Floats max(Floats rest, Mask some, Floats a, Floats b) {
  return select(rest, some, max(a, b));
}
LANE Floats div(Floats rest, Mask some, Floats a, Floats b) {
  return select(rest, some, div(a, b));
}

// Within each four lanes.
LANE Floats unpack_low(Floats a, Floats b) {
  return {_mm256_unpacklo_ps(a.low, b.low), _mm256_unpacklo_ps(a.high, b.high)};
}
LANE Floats unpack_high(Floats a, Floats b) {
  return {_mm256_unpackhi_ps(a.low, b.low), _mm256_unpackhi_ps(a.high, b.high)};
}
template <int Order>
LANE Floats shuffle(Floats a, Floats b) {
  return {_mm256_shuffle_ps(a.low, b.low, Order), _mm256_shuffle_ps(a.high, b.high, Order)};
}
template <int Order>
LANE Floats permute(Floats x) {
  return {_mm256_permute_ps(x.low, Order), _mm256_permute_ps(x.high, Order)};
}
LANE Words shuffle_bytes(Words x, Words order) {
  return {_mm256_shuffle_epi8(x.low, order.low), _mm256_shuffle_epi8(x.high, order.high)};
}
// Two fours of a, then two of b.
template <int Order>
LANE Floats shuffle_fours(Floats a, Floats b) {
  constexpr int kLow = (Order & 3) | (Order >> 2 & 3) << 4;
  constexpr int kHigh = (Order >> 4 & 3) | (Order >> 6 & 3) << 4;
  return {_mm256_permute2f128_ps(a.low, a.high, kLow),
          _mm256_permute2f128_ps(b.low, b.high, kHigh)};
}
LANE Floats broadcast_lane(Floats x, size_t lane) {
  const __m256i place = _mm256_set1_epi32((int)lane & 7);
  const __m256 found = _mm256_permutevar8x32_ps(lane < 8 ? x.low : x.high, place);
  return {found, found};
}
LANE Words broadcast_lane(Words x, size_t lane) {
  return as_words(broadcast_lane(as_floats(x), lane));
}
// Every second one of a, of 16 or of 8 bits, beginning with the first; between them those of b.
LANE Words odd16(Words a, Words b) {
  return {_mm256_blend_epi16(a.low, b.low, 0xaa), _mm256_blend_epi16(a.high, b.high, 0xaa)};
}
LANE Words odd8(Words a, Words b) {
  const __m256i odd = _mm256_set1_epi16((short)0xff00);
  return {_mm256_blendv_epi8(a.low, b.low, odd), _mm256_blendv_epi8(a.high, b.high, odd)};
}

}  // namespace vlmc
