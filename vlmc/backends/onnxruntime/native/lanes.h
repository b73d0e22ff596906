#pragma once
// What kernels are written in: sixteen numbers at a time, a lane each. One register of AVX-512, or
// two of AVX2: the sources are compiled once for each (pyproject.toml), and the library that fits
// is loaded.
//
// Names are those of the instructions where there are such. A Mask comes before what is loaded and
// behind where something is stored; lanes that it leaves out are zero, or left alone, and no memory
// of theirs is touched.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef VLMC_AVX2
#include "lanes_avx2.h"
#else
#include "lanes_avx512.h"
#endif

#define LANES_INLINE LANES __attribute__((always_inline)) static inline
#define LANES_LAMBDA LANES __attribute__((always_inline))

namespace vlmc {

constexpr size_t kPanel = 64;  // output channels, or keys, that are multiplied together

LANES_INLINE Mask first16(size_t n) { return n >= 16 ? 0xffff : (Mask)((1u << n) - 1); }

// bfloat16 is the upper half of a float32.
LANES_INLINE Floats from_bfloat16(__m256i x) { return as_floats(shift_left(to_words(x), 16)); }

}  // namespace vlmc
