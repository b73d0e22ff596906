#pragma once
// What the kernels share: the instructions they are made of, and masks for what is left over.
#include <immintrin.h>

#include <cstddef>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prfchw")))
#define AVX512_INLINE AVX512 __attribute__((always_inline)) static inline
#define AVX512_LAMBDA AVX512 __attribute__((always_inline))

namespace vlmc {

constexpr size_t kPanel = 64;  // output channels, or keys, that are multiplied together

AVX512_INLINE __mmask16 first16(size_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
AVX512_INLINE __mmask64 first64(size_t n) { return n >= 64 ? ~0ull : (1ull << n) - 1; }

// x less the largest whole number that is not above it; 0 of infinity.
AVX512_INLINE __m512 fraction(__m512 x) {
  return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}

}  // namespace vlmc
