// Products with weights in blocks, [n, k/block, ...], from the layout they are stored in.
#include <cmath>
#include <vector>

#include "vnni.h"

namespace vlmc {
namespace {

constexpr size_t kAhead = 16384;  // bytes of a channel's codes that are asked for before they are read

// ---- few tokens, or 8 bits: one channel at a time, 64 bytes at a time

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

struct BlockWeights {
  const uint8_t* codes;
  const float* scales;
  const uint8_t* zero_points;  // or null: the middle
  size_t block, blocks;        // blocks of a channel
};

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
#pragma GCC unroll 2
  for (size_t c = 0; c < C; ++c)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) acc[c][r] = _mm512_setzero_ps();
  __mmask64 code_mask = ~0ull;
  __mmask16 scale_mask = first16(in_chunk);
  for (size_t g = 0; g < x.chunks; ++g) {
    const size_t at = g * x.numbers >> log_block;
    if (g + 1 == x.chunks) {  // what lies behind belongs to others
      code_mask = first64(bytes - g * 64);
      scale_mask = first16(std::min(in_chunk, w.blocks - at));
    }
#pragma GCC unroll 2
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
  }
  const size_t zero_bytes = (w.blocks + 1) / 2;
  if (w.zero_points) _mm_prefetch((const char*)(w.zero_points + first * zero_bytes + 512), _MM_HINT_T0);
  for (size_t at = 0; at < w.blocks; at += 16)
#pragma GCC unroll 2
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
#pragma GCC unroll 2
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
  for (; c + 2 <= last; c += 2) dot_channels<Bits, R, 2>(x, w, c, which, n, bias, y);
  if (c < last) dot_channels<Bits, R, 1>(x, w, c, which, n, bias, y);
}

using Channels = void (*)(const Blocked&, const BlockWeights&, size_t, size_t, size_t,
                          const float*, float*);
constexpr Channels kChannels[2][kFewTokens] = {
    {channels<4, 1>, channels<4, 2>, channels<4, 3>, channels<4, 4>, channels<4, 5>,
     channels<4, 6>, channels<4, 7>, channels<4, 8>},
    {channels<8, 1>, channels<8, 2>, channels<8, 3>, channels<8, 4>, channels<8, 5>,
     channels<8, 6>, channels<8, 7>, channels<8, 8>}};

// ---- many tokens, 4-bit blocks: a panel becomes bytes with one scale a channel, then it is as int8 weights

AVX512_INLINE void transpose16(__m512i* v) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 q + j]: column 4 l + j of rows 4 q .. 4 q + 3 in lane l.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512i four[4] = {v[j], v[4 + j], v[8 + j], v[12 + j]};
    lanes_in_order(four);
    for (int l = 0; l < 4; ++l) t[4 * l + j] = four[l];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Channel `c` at 4 bits -> bytes around 128 with one scale, which is returned.
AVX512 float expand_channel(const BlockWeights& w, size_t c, uint8_t* out) {
  const uint8_t* codes = w.codes + c * w.blocks * w.block / 2;
  const float* scales = w.scales + c * w.blocks;
  const uint8_t* zeros = w.zero_points ? w.zero_points + c * ((w.blocks + 1) / 2) : nullptr;
  const auto zero_of = [&](size_t b) { return zeros ? (zeros[b / 2] >> (b % 2 * 4)) & 15 : 8; };
  float top = kSmallest;
  for (size_t b = 0; b < w.blocks; ++b) {
    const int zero = zero_of(b);
    top = std::max(top, std::abs(scales[b]) * (float)std::max(zero, 15 - zero));
  }
  const float scale = top * (1 / 127.0f);
  const __m512 steps = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m128i low = _mm_set1_epi8(15);
  for (size_t b = 0; b < w.blocks; ++b) {
    const float ratio = scales[b] / scale;
    const __m512 values = _mm512_mul_ps(
        _mm512_sub_ps(steps, _mm512_set1_ps((float)zero_of(b))), _mm512_set1_ps(ratio));
    const __m128i table = _mm_xor_si128(_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(values)),
                                        _mm_set1_epi8((char)0x80));
    for (size_t j = 0; j < w.block / 2; j += 16, codes += 16, out += 32) {
      const size_t bytes = std::min<size_t>(16, w.block / 2 - j);
      const __m128i packed = _mm_maskz_loadu_epi8((__mmask16)((1u << bytes) - 1), codes);
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(packed, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(packed, 4), low));
      _mm_storeu_si128((__m128i*)out, _mm_unpacklo_epi8(even, odd));
      _mm_storeu_si128((__m128i*)(out + 16), _mm_unpackhi_epi8(even, odd));
      if (bytes < 16) codes -= 16 - bytes, out -= 32 - 2 * bytes;
    }
  }
  return scale;
}

AVX512 void pack_blocks(const BlockWeights& w, size_t first, size_t count, size_t groups,
                      uint8_t* rows, size_t room, uint8_t* out, float* scales) {
  for (size_t s = 0; s < kPanel; s += 16) {
    for (size_t j = 0; j < 16; ++j) {
      if (s + j < count) scales[s + j] = expand_channel(w, first + s + j, rows + j * room);
    }
    for (size_t g = 0; g < groups; g += 16) {
      __m512i v[16];
      for (size_t j = 0; j < 16; ++j) v[j] = _mm512_loadu_si512(rows + j * room + g * 4);
      transpose16(v);
      for (size_t j = 0; j < 16 && g + j < groups; ++j)
        _mm512_store_si512(out + ((g + j) * 4 + s / 16) * 64, v[j]);
    }
  }
}

}  // namespace

namespace {

BlockWeights blocks_of(const Product& product, size_t k, size_t block) {
  return {static_cast<const uint8_t*>(product.w), product.scales, product.zero_points, block,
          (k + block - 1) / block};
}

// Up to eight tokens; y of each product is that of the first of them.
void few_tokens(const Blocked& t, size_t m, size_t k, int bits, size_t block,
                const Product* products, size_t count, Gate gate, const Parallel& parallel) {
  const Channels run = kChannels[bits == 4 ? 0 : 1][m - 1];
  const auto channels = [&](const Product& p, size_t first, size_t last, float* y) {
    run(t, blocks_of(p, k, block), first, last, p.n, p.bias, y);
  };
  size_t n = 0;
  for (size_t i = 0; i < (gate == Gate::none ? count : 1); ++i) n += products[i].n;
  const size_t tasks = 4 * parallel.threads;
  const size_t of_task = std::max<size_t>(32, (n + tasks - 1) / tasks);
  static thread_local Scratch<float> room;
  const bool two = gate != Gate::none && count > 1;
  float* beside = two ? room.at_least(m * products[1].n) : nullptr;
  each(parallel, (n + of_task - 1) / of_task, [&](size_t task) {
    size_t first = task * of_task, last = std::min(n, first + of_task);
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
}

}  // namespace

void linear_blocks(const float* x, size_t m, size_t k, int bits, size_t block,
                   const Product* products, size_t count, Gate gate, const Parallel& parallel) {
  if (bits == 8 || m <= kFewTokens) {
    static thread_local std::vector<Product> here;
    for (size_t row = 0; row < m; row += kFewTokens) {
      const size_t rows = std::min(kFewTokens, m - row);
      here.assign(products, products + count);
      for (Product& p : here)
        if (p.y) p.y += row * p.n;
      const Blocked t = quantize_blocks(x + row * k, rows, k, bits, block);
      few_tokens(t, rows, k, bits, block, here.data(), count, gate, parallel);
    }
    return;
  }
  const Tokens t = quantize_tokens(x, m, k, parallel);
  const size_t groups = (k + 3) / 4;
  by_panels(t, m, groups, products, count, gate, parallel,
            [&](const Product& of, size_t first, size_t channels, uint8_t* panel, float* scales) {
              static thread_local Scratch<uint8_t> rows;
              const BlockWeights weights = blocks_of(of, k, block);
              const size_t width = padded(weights.blocks * block, 64) + 64;
              pack_blocks(weights, first, channels, groups, rows.at_least(16 * width), width, panel,
                          scales);
              return static_cast<const float*>(scales);
            });
}

}  // namespace vlmc
