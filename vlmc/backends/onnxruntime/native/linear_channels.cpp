// Products with int8 weights [k, n] that have one scale a column, from the layout they are stored in.
#include <vector>

#include "vnni.h"

namespace vlmc {
namespace {

constexpr size_t kStrip = 8192;  // output channels of a task when tokens are few
constexpr size_t kSums = 1 << 17;  // sums that are kept, unless a strip has more
// What is asked for before it is read: memory answers late, and few CPUs guess this order.
constexpr size_t kColumnsAhead = 1536;  // of eight rows

// rows of 4 k x 64 channels -> 4 vectors of 16 channels, each channel's 4 bytes together
AVX512_INLINE void interleave(__m512i r0, __m512i r1, __m512i r2, __m512i r3, __m512i* out) {
  __m512i a = _mm512_unpacklo_epi8(r0, r1), b = _mm512_unpackhi_epi8(r0, r1);
  __m512i c = _mm512_unpacklo_epi8(r2, r3), d = _mm512_unpackhi_epi8(r2, r3);
  // Within each 128-bit lane l: channels 16l + 0..3, 4..7, 8..11, 12..15.
  out[0] = _mm512_unpacklo_epi16(a, c);
  out[1] = _mm512_unpackhi_epi16(a, c);
  out[2] = _mm512_unpacklo_epi16(b, d);
  out[3] = _mm512_unpackhi_epi16(b, d);
}

// ---- many tokens: 64 channels at a time, packed

AVX512 void pack_columns(const int8_t* w, size_t k, size_t n, size_t count, size_t groups,
                       uint8_t* out) {
  const __mmask64 there = first64(count);
  const __m512i shift = _mm512_set1_epi8((char)0x80);
  constexpr size_t kRowsAhead = 24;
  for (size_t g = 0; g < groups; ++g) {
    __m512i r[4], v[4];
    for (size_t j = 0; j < 4; ++j) {
      size_t row = g * 4 + j;
      r[j] = row < k ? _mm512_maskz_loadu_epi8(there, w + row * n) : _mm512_setzero_si512();
      r[j] = _mm512_xor_si512(r[j], shift);
      if (row + kRowsAhead < k) _mm_prefetch((const char*)(w + (row + kRowsAhead) * n), _MM_HINT_T0);
      // The next panel lies beside this one: it comes while this one is multiplied.
      _mm_prefetch((const char*)(w + row * n + kPanel), _MM_HINT_T1);
    }
    interleave(r[0], r[1], r[2], r[3], v);
    lanes_in_order(v);
    for (size_t j = 0; j < 4; ++j) _mm512_store_si512(out + (g * 4 + j) * 64, v[j]);
  }
}

// ---- few tokens: memory is read from front to back, each thread its rows of it

// Adds, to sums[R][width], what rows `from` .. `to` of the weights give for `count` channels. The
// sums of 64 channels lie as `interleave` leaves them.
template <size_t R>
AVX512 void add_rows(const Tokens& t, size_t k, size_t n, size_t from, size_t to, const int8_t* w,
                   size_t count, int32_t* sums, size_t width) {
  const __m512i shift = _mm512_set1_epi8((char)0x80);
  for (size_t row = from; row < to; row += 8) {
    __m512i x[R][2];
    for (size_t r = 0; r < R; ++r)
      for (size_t h = 0; h < 2; ++h) {
        int32_t four;
        std::memcpy(&four, t.codes + r * t.room + row + h * 4, 4);
        x[r][h] = _mm512_set1_epi32(four);
      }
    const bool last = row + 16 > k;
    for (size_t c = 0; c < count; c += 64) {
      const __mmask64 there = first64(count - c);
      const int8_t* at = w + row * n + c;
      // The columns ahead, or behind the last of them the first of the next rows.
      const bool wraps = c + kColumnsAhead >= count;
      if (!(wraps && last)) {
        const int8_t* next = at + kColumnsAhead;
        if (wraps) next += 8 * n - padded(count, 64);
#pragma GCC unroll 8
        for (size_t j = 0; j < 8; ++j) _mm_prefetch((const char*)(next + j * n), _MM_HINT_T0);
      }
      __m512i v[2][4];
#pragma GCC unroll 2
      for (size_t h = 0; h < 2; ++h) {
        __m512i line[4];
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
          line[j] = row + h * 4 + j < k ? _mm512_maskz_loadu_epi8(there, at + (h * 4 + j) * n)
                                        : _mm512_setzero_si512();
          line[j] = _mm512_xor_si512(line[j], shift);
        }
        interleave(line[0], line[1], line[2], line[3], v[h]);
      }
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
          int32_t* sum = sums + r * width + c + j * 16;
          __m512i s = _mm512_load_si512(sum);
          s = _mm512_dpbusd_epi32(s, v[0][j], x[r][0]);
          s = _mm512_dpbusd_epi32(s, v[1][j], x[r][1]);
          _mm512_store_si512(sum, s);
        }
    }
  }
}

using AddRows = void (*)(const Tokens&, size_t, size_t, size_t, size_t, const int8_t*, size_t,
                         int32_t*, size_t);
constexpr AddRows kAddRows[kFewTokens] = {add_rows<1>, add_rows<2>, add_rows<3>, add_rows<4>,
                                          add_rows<5>, add_rows<6>, add_rows<7>, add_rows<8>};

// y of `count` channels from the sums that `parts` parts of the rows gave.
AVX512 void finish_rows(const Tokens& t, size_t m, const int32_t* sums, size_t parts, size_t width,
                      size_t count, const float* scales, const float* bias, float* y, size_t n) {
  for (size_t r = 0; r < m; ++r) {
    const __m512i shifted = _mm512_set1_epi32(128 * t.sums[r]);
    const __m512 scale = _mm512_set1_ps(t.scales[r]);
    for (size_t c = 0; c < count; c += 64) {
      __m512i v[4];
      for (size_t j = 0; j < 4; ++j) {
        v[j] = _mm512_sub_epi32(_mm512_load_si512(sums + r * width + c + j * 16), shifted);
        for (size_t p = 1; p < parts; ++p)
          v[j] = _mm512_add_epi32(
              v[j], _mm512_load_si512(sums + (p * m + r) * width + c + j * 16));
      }
      lanes_in_order(v);
      for (size_t j = 0; j < 4 && c + j * 16 < count; ++j) {
        const size_t at = c + j * 16;
        const __mmask16 there = first16(count - at);
        __m512 f = _mm512_cvtepi32_ps(v[j]);
        f = _mm512_mul_ps(_mm512_mul_ps(f, _mm512_maskz_loadu_ps(there, scales + at)), scale);
        if (bias) f = _mm512_add_ps(f, _mm512_maskz_loadu_ps(there, bias + at));
        _mm512_mask_storeu_ps(y + r * n + at, there, f);
      }
    }
  }
}

// Channels of one product whose sums are kept together.
struct Strip {
  const Product* product;
  size_t first, count, width;
  int32_t* sums;  // [parts, m, width]
};

// The work of all strips is shared out at once: a wait for the slowest thread costs as much as
// a small product.
void run_strips(const Tokens& t, size_t m, size_t k, std::vector<Strip>& strips, int32_t* room,
                const Parallel& parallel) {
  // Whole groups of eight rows; twice as many parts as threads, so that one held up is helped.
  const size_t groups = (k + 7) / 8;
  const size_t parts = std::min(groups, parallel.threads > 1 ? 2 * parallel.threads : 1);
  const size_t of_part = (groups + parts - 1) / parts * 8, used = (k + of_part - 1) / of_part;
  for (Strip& s : strips) s.sums = room, room += used * m * s.width;
  each(parallel, used * strips.size(), [&](size_t task) {
    const Strip& s = strips[task / used];
    const size_t p = task % used;
    int32_t* own = s.sums + p * m * s.width;
    std::memset(own, 0, m * s.width * sizeof(int32_t));
    kAddRows[m - 1](t, k, s.product->n, p * of_part, std::min(k, (p + 1) * of_part),
                    static_cast<const int8_t*>(s.product->w) + s.first, s.count, own, s.width);
  });
  for (const Strip& s : strips) {
    const Product& of = *s.product;
    finish_rows(t, m, s.sums, used, s.width, s.count, of.scales + s.first,
                of.bias ? of.bias + s.first : nullptr, of.y + s.first, of.n);
  }
  strips.clear();
}

void few_tokens(const Tokens& t, size_t m, size_t k, const Product* products, size_t count,
                const Parallel& parallel) {
  static thread_local Scratch<int32_t> room;
  static thread_local std::vector<Strip> strips;
  strips.clear();
  const size_t of_channel = m * std::max<size_t>(2 * parallel.threads, 1);
  const size_t most = std::max(kSums, kStrip * of_channel);
  int32_t* sums = room.at_least(most);
  size_t taken = 0;
  for (const Product* p = products; p != products + count; ++p)
    for (size_t first = 0; first < p->n; first += kStrip) {
      const size_t channels = std::min(kStrip, p->n - first), width = padded(channels, 64);
      if (taken + width * of_channel > most) run_strips(t, m, k, strips, sums, parallel), taken = 0;
      strips.push_back({p, first, channels, width, nullptr});
      taken += width * of_channel;
    }
  run_strips(t, m, k, strips, sums, parallel);
}

}  // namespace

void linear8(const float* x, size_t m, size_t k, const Product* products, size_t count, Gate gate,
             const Parallel& parallel) {
  if (m == 0) return;
  const Tokens t = quantize_tokens(x, m, k, parallel);
  if (m <= kFewTokens) {
    if (gate == Gate::none) return few_tokens(t, m, k, products, count, parallel);
    static thread_local Scratch<float> room;
    Product both[] = {products[0], products[count - 1]};
    if (count > 1) both[1].y = room.at_least(m * both[1].n);
    few_tokens(t, m, k, both, count, parallel);
    const float* by = count > 1 ? both[1].y : nullptr;
    return gate_rows(gate, 1, m * both[0].n, by, 0, both[0].y, 0);
  }
  const size_t groups = (k + 3) / 4;
  by_panels(t, m, groups, products, count, gate, parallel,
            [&](const Product& of, size_t first, size_t channels, uint8_t* panel, float*) {
              const int8_t* w = static_cast<const int8_t*>(of.w) + first;
              pack_columns(w, k, of.n, channels, groups, panel);
              return of.scales + first;
            });
}

}  // namespace vlmc
