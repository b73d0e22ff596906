// Products of few tokens with weights in blocks, or of any with those at 8 bits: one channel at a time,
// 64 bytes at a time.
#include "linear_blocks.h"
#include "team.h"
#include "vnni.h"

namespace vlmc {
namespace {

constexpr size_t kAhead = 16384;  // bytes of a channel's codes that are asked for before they are read

// Tokens quantized block by block, in the order a vector of weights meets them. A chunk is what 64
// bytes of a channel's weights hold: 128 numbers at 4 bits (even ones first, then odd ones, as
// the low and high halves of bytes are), 64 numbers at 8 bits.
struct Blocked {
  int8_t* codes;  // [m, chunks, numbers]
  float* scales;  // [m, chunks, 16]: of each 32-bit sum
  float* sums;    // [m, width]: of each block's codes, times their scale
  size_t chunks, numbers, width;
};

AVX512 Blocked quantize_blocks(const float* x, size_t m, size_t k, int bits, size_t block) {
  static thread_local Scratch<int8_t> codes, ordered;
  static thread_local Scratch<float> scales, sums;
  Blocked b;
  b.numbers = bits == 4 ? 128 : 64;
  b.chunks = (k + b.numbers - 1) / b.numbers;
  b.width = padded((k + block - 1) / block, 16);
  const size_t room = b.chunks * b.numbers, per_sum = b.numbers / 16;
  b.codes = codes.at_least(m * room);
  b.scales = scales.at_least(m * b.chunks * 16);
  b.sums = sums.at_least(m * b.width);
  std::fill(b.sums, b.sums + m * b.width, 0.0f);
  int8_t* plain = ordered.at_least(room);
  for (size_t i = 0; i < m; ++i) {
    const float* row = x + i * k;
    float* row_scales = b.scales + i * b.chunks * 16;
    for (size_t start = 0; start < room; start += block) {
      const size_t stop = std::min(start + block, room);
      float scale = 0;
      if (start < k) {
        const size_t count = std::min(block, k - start);
        scale = (largest(row + start, count) + kSmallest) * (1 / 127.0f);
        const int32_t sum = codes_of(row + start, count, stop - start, 1 / scale, plain + start);
        b.sums[i * b.width + start / block] = scale * (float)sum;
      } else {
        std::memset(plain + start, 0, stop - start);
      }
      std::fill(row_scales + start / per_sum, row_scales + stop / per_sum, scale);
    }
    int8_t* out = b.codes + i * room;
    if (bits == 8) {
      std::memcpy(out, plain, room);
      continue;
    }
    for (size_t c = 0; c < room; c += 128)
      for (size_t h = 0; h < 64; h += 32) {
        const __m512i pairs = _mm512_loadu_si512(plain + c + 2 * h);
        _mm256_storeu_si256((__m256i*)(out + c + h), _mm512_cvtepi16_epi8(pairs));
        _mm256_storeu_si256((__m256i*)(out + c + 64 + h),
                            _mm512_cvtepi16_epi8(_mm512_srli_epi16(pairs, 8)));
      }
  }
  return b;
}

// Zero points of 16 blocks from `at` on, of those that are there.
template <int Bits>
AVX512_INLINE __m512 zeros_of(const uint8_t* zeros, size_t at, size_t blocks) {
  if (!zeros) return _mm512_set1_ps(Bits == 4 ? 8.0f : 128.0f);
  const __m128i bytes = _mm_maskz_loadu_epi8(first16((blocks - at + 1) / 2) & 0xff, zeros + at / 2);
  const __m128i low = _mm_set1_epi8(15);
  const __m128i each = _mm_unpacklo_epi8(_mm_and_si128(bytes, low),
                                         _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(each));
}

// y of C channels that follow each other, for R tokens.
template <int Bits, size_t R, size_t C>
AVX512_INLINE void dot_channels(const Blocked& x, const BlockWeights& w, size_t first, __m512i which,
                              size_t n, const float* bias, float* y) {
  const size_t bytes = w.blocks * w.block * Bits / 8;  // of a channel
  const size_t in_chunk = std::max<size_t>(1, x.numbers / w.block);
  const int log_block = __builtin_ctzll(w.block);
  const __m512i low = _mm512_set1_epi8(15);
  const size_t scales_ahead = kAhead * 8 / Bits >> log_block;
  const uint8_t* codes = w.codes + first * bytes;
  const float* scales = w.scales + first * w.blocks;
  __m512 acc[C][R];
#pragma GCC unroll 4
  for (size_t c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) acc[c][r] = _mm512_setzero_ps();
  const auto chunk = [&](size_t g, __mmask64 code_mask, __mmask16 scale_mask) AVX512_LAMBDA {
    const size_t at = g * x.numbers >> log_block;
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      const __m512i v = _mm512_maskz_loadu_epi8(code_mask, codes + c * bytes + g * 64);
      _mm_prefetch((const char*)(codes + c * bytes + g * 64 + kAhead), _MM_HINT_T0);
      if (g % 4 == 0)
        _mm_prefetch((const char*)(scales + c * w.blocks + at + scales_ahead), _MM_HINT_T0);
      const __m512 scale = _mm512_permutexvar_ps(
          which, _mm512_maskz_loadu_ps(scale_mask, scales + c * w.blocks + at));
      const __m512i v0 = Bits == 4 ? _mm512_and_si512(v, low) : v;
      const __m512i v1 = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        const int8_t* a = x.codes + (r * x.chunks + g) * x.numbers;
        __m512i sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), v0, _mm512_loadu_si512(a));
        if (Bits == 4) sum = _mm512_dpbusd_epi32(sum, v1, _mm512_loadu_si512(a + 64));
        const __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(sum),
                                          _mm512_loadu_ps(x.scales + (r * x.chunks + g) * 16));
        acc[c][r] = _mm512_fmadd_ps(part, scale, acc[c][r]);
      }
    }
  };
  const size_t last = x.chunks - 1, behind = last * x.numbers >> log_block;
  for (size_t g = 0; g < last; ++g) chunk(g, ~0ull, first16(in_chunk));
  // What lies behind the last one's belongs to others.
  chunk(last, first64(bytes - last * 64), first16(std::min(in_chunk, w.blocks - behind)));
  const size_t zero_bytes = (w.blocks + 1) / 2;
  if (w.zero_points) _mm_prefetch((const char*)(w.zero_points + first * zero_bytes + 512), _MM_HINT_T0);
  for (size_t at = 0; at < w.blocks; at += 16)
#pragma GCC unroll 4
    for (size_t c = 0; c < C; ++c) {
      const uint8_t* zeros = w.zero_points ? w.zero_points + (first + c) * zero_bytes : nullptr;
      const __m512 shift = _mm512_mul_ps(
          zeros_of<Bits>(zeros, at, w.blocks),
          _mm512_maskz_loadu_ps(first16(w.blocks - at), scales + c * w.blocks + at));
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r)
        acc[c][r] =
            _mm512_fnmadd_ps(shift, _mm512_loadu_ps(x.sums + r * x.width + at), acc[c][r]);
    }
#pragma GCC unroll 4
  for (size_t c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
      y[r * n + first + c] =
          _mm512_reduce_add_ps(acc[c][r]) + (bias ? bias[first + c] : 0.0f);
}

template <int Bits, size_t R>
AVX512 void channels(const Blocked& x, const BlockWeights& w, size_t first, size_t last, size_t n,
                   const float* bias, float* y) {
  alignas(64) int32_t lane_block[16];  // of each 32-bit sum of a chunk
  for (size_t i = 0; i < 16; ++i) lane_block[i] = (int32_t)(i * (x.numbers / 16) / w.block);
  const __m512i which = _mm512_load_si512(lane_block);
  size_t c = first;
  constexpr size_t C = R <= 2 ? 4 : 2;  // as many sums as fit, and one load of x for all of them
  for (; c + C <= last; c += C) dot_channels<Bits, R, C>(x, w, c, which, n, bias, y);
  for (; c < last; ++c) dot_channels<Bits, R, 1>(x, w, c, which, n, bias, y);
}

using Channels = void (*)(const Blocked&, const BlockWeights&, size_t, size_t, size_t,
                          const float*, float*);
constexpr Channels kChannels[2][kFewTokens] = {
    {channels<4, 1>, channels<4, 2>, channels<4, 3>, channels<4, 4>, channels<4, 5>,
     channels<4, 6>, channels<4, 7>, channels<4, 8>},
    {channels<8, 1>, channels<8, 2>, channels<8, 3>, channels<8, 4>, channels<8, 5>,
     channels<8, 6>, channels<8, 7>, channels<8, 8>}};

}  // namespace

void linear_blocks_few(const float* x, size_t m, size_t k, int bits, size_t block,
                       const Product* products, size_t count, Gate gate,
                       const Parallel& parallel) {
  const Blocked t = quantize_blocks(x, m, k, bits, block);
  const Channels run = kChannels[bits == 4 ? 0 : 1][m - 1];
  const auto channels = [&](const Product& p, size_t first, size_t last, float* y) {
    run(t, blocks_of(p, k, block), first, last, p.n, p.bias, y);
  };
  size_t n = 0;
  for (size_t i = 0; i < (gate == Gate::none ? count : 1); ++i) n += products[i].n;
  static thread_local Scratch<float> room;
  const bool two = gate != Gate::none && count > 1;
  float* beside = two ? room.at_least(m * products[1].n) : nullptr;
  constexpr size_t kLeast = 32;  // channels
  together<1>(parallel, [&](Member member) {
    member.share(n, kLeast, [&](size_t first, size_t last) {
      if (gate != Gate::none) {
        channels(products[0], first, last, products[0].y);
        if (two) channels(products[1], first, last, beside);
        const float* by = two ? beside + first : nullptr;
        return gate_rows(gate, m, last - first, by, n, products[0].y + first, n);
      }
      // Channels of all products follow each other.
      for (const Product* p = products; first < last; ++p) {
        if (first < p->n) channels(*p, first, std::min(last, p->n), p->y);
        first -= std::min(first, p->n), last -= std::min(last, p->n);
      }
    });
  });
}

}  // namespace vlmc
