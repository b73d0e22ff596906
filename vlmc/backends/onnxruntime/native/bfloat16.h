#pragma once
// Numbers rounded to bfloat16, two of them in the place of a float32.
//
// In assembly: only who knows that the CPU has AVX512_BF16 comes here, and the compiler lets no
// function that may use it share code with one that may not. With AVX2 nobody comes.
#include "lanes.h"

namespace vlmc {

#ifdef VLMC_AVX2
Floats dot_pairs(Floats acc, Floats a, Floats b);
__m256i to_bf16(Floats x);
Floats pairs(Floats low, Floats high);
Floats interleaved(Floats x);
#else
// acc + the products of two bfloat16 in each lane.
LANES_INLINE Floats dot_pairs(Floats acc, Floats a, Floats b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}

// 16 numbers as bfloat16, rounded to nearest even.
LANES_INLINE __m256i to_bf16(Floats x) {
  __m256i y;
  asm("vcvtneps2bf16 %1, %0" : "=v"(y) : "v"(x));
  return y;
}

// 32 numbers as bfloat16: those of `low` in the first 8 lanes, two in each, then those of `high`.
LANES_INLINE Floats pairs(Floats low, Floats high) {
  Floats y;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(y) : "v"(low), "v"(high));
  return y;
}

// Of what `pairs` gives: number i of `low` and number i of `high` in lane i.
LANES_INLINE Floats interleaved(Floats x) {
  const Words low = lane_numbers();
  const Words places = bit_or(low, shift_left(add(low, words(16)), 16));
  return as_floats(_mm512_permutexvar_epi16(places, as_words(x)));
}
#endif

// acc + x v; of Pairs, each lane of x and v is two bfloat16.
template <bool Pairs>
LANES_INLINE Floats multiply_add(Floats x, Floats v, Floats acc) {
  if constexpr (Pairs)
    return dot_pairs(acc, x, v);
  else
    return fmadd(x, v, acc);
}

}  // namespace vlmc
