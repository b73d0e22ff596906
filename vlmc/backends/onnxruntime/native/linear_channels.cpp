// Products with int8 weights [k, n] that have one scale a column, from the layout they are stored in.
#include <vector>

#include "team.h"
#include "vnni.h"

namespace vlmc {
namespace {

constexpr size_t kStrip = 8192;  // output channels of a task when tokens are few
constexpr size_t kSums = 1 << 17;  // sums that are kept, unless a strip has more
constexpr size_t kLeast = 16384;   // bytes of weights that a thread takes at a time, or more
constexpr size_t kFinished = 512;  // channels that are finished at a time
constexpr size_t kShared = 4;      // times that many are worth another thread's while
constexpr size_t kAhead = 4096;  // bytes that are asked for before they are read: memory answers late

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
// sums of 64 channels lie as `interleave` leaves them. A few rows are read side by side, but asked
// for in the order they lie in: they would be as many streams, each with its own pages.
template <size_t R>
AVX512 void add_rows(const Tokens& t, size_t k, size_t n, size_t from, size_t to, const int8_t* w,
                   size_t count, int32_t* sums, size_t width) {
  // With more tokens sums cost more than waiting does: they are touched half as often.
  constexpr size_t H = R > 2 ? 2 : 1, kRows = 4 * H;
  const __m512i shift = _mm512_set1_epi8((char)0x80);
  const size_t ahead = padded((kRows - 1) * n + kAhead, 64);  // for the last row's first line
  for (size_t row = from; row < to; row += kRows) {
    __m512i x[R][H];
    for (size_t r = 0; r < R; ++r)
      for (size_t h = 0; h < H; ++h) {
        int32_t four;
        std::memcpy(&four, t.codes + r * t.room + row + h * 4, 4);
        x[r][h] = _mm512_set1_epi32(four);
      }
    for (size_t c = 0; c < count; c += 64) {
      const __mmask64 there = first64(count - c);
      const int8_t* at = w + row * n + c;
      const int8_t* next = w + row * n + ahead + kRows * c;
      __m512i v[H][4];
#pragma GCC unroll 2
      for (size_t h = 0; h < H; ++h) {
        __m512i line[4];
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) {
          const size_t i = h * 4 + j;
          _mm_prefetch((const char*)(next + i * 64), _MM_HINT_T0);
          line[j] =
              row + i < k ? _mm512_maskz_loadu_epi8(there, at + i * n) : _mm512_setzero_si512();
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
#pragma GCC unroll 2
          for (size_t h = 0; h < H; ++h) s = _mm512_dpbusd_epi32(s, v[h][j], x[r][h]);
          _mm512_store_si512(sum, s);
        }
    }
  }
}

using AddRows = void (*)(const Tokens&, size_t, size_t, size_t, size_t, const int8_t*, size_t,
                         int32_t*, size_t);
constexpr AddRows kAddRows[kFewTokens] = {add_rows<1>, add_rows<2>, add_rows<3>, add_rows<4>,
                                          add_rows<5>, add_rows<6>, add_rows<7>, add_rows<8>};

// Channels of one product whose sums are kept together.
struct Strip {
  const Product* product;
  size_t first, count, width;
  size_t at;  // of its sums [m, width] in those of a thread
};

// Sums of all strips, of each thread that took some rows.
struct Sums {
  int32_t* room;
  size_t each, threads;  // numbers of a thread
  uint8_t* used;         // [threads]
};

// y of a strip's channels from .. to, `from` a multiple of 64.
AVX512 void finish_rows(const Tokens& t, size_t m, const Strip& s, const Sums& sums, size_t from,
                      size_t to) {
  const Product& of = *s.product;
  for (size_t r = 0; r < m; ++r) {
    const __m512i shifted = _mm512_set1_epi32(-128 * t.sums[r]);
    const __m512 scale = _mm512_set1_ps(t.scales[r]);
    for (size_t c = from; c < to; c += 64) {
      __m512i v[4] = {shifted, shifted, shifted, shifted};
      const int32_t* sum = sums.room + s.at + r * s.width + c;
      for (size_t thread = 0; thread < sums.threads; ++thread, sum += sums.each)
        for (size_t j = 0; sums.used[thread] && j < 4; ++j)
          v[j] = _mm512_add_epi32(v[j], _mm512_load_si512(sum + j * 16));
      lanes_in_order(v);
      for (size_t j = 0; j < 4 && c + j * 16 < to; ++j) {
        const size_t at = s.first + c + j * 16;
        const __mmask16 there = first16(to - c - j * 16);
        __m512 f = _mm512_cvtepi32_ps(v[j]);
        f = _mm512_mul_ps(_mm512_mul_ps(f, _mm512_maskz_loadu_ps(there, of.scales + at)), scale);
        if (of.bias) f = _mm512_add_ps(f, _mm512_maskz_loadu_ps(there, of.bias + at));
        _mm512_mask_storeu_ps(of.y + r * of.n + at, there, f);
      }
    }
  }
}

// What becomes of the sums of a strip, or of two after each other where one gates the other: y.
struct Finish {
  Gate gate;
  size_t strips;  // 1, or 2 of one width

  void operator()(const Tokens& t, size_t m, const Strip* s, const Sums& sums, size_t from,
                  size_t to) const {
    for (size_t i = 0; i < strips; ++i) finish_rows(t, m, s[i], sums, from, to);
    if (gate == Gate::none) return;
    const size_t n = s->product->n, at = s->first + from;
    const float* by = strips > 1 ? s[1].product->y + at : nullptr;
    gate_rows(gate, m, to - from, by, n, s->product->y + at, n);
  }
};

void run_strips(const Tokens& t, size_t m, size_t k, std::vector<Strip>& strips,
                const Finish& finish, int32_t* room, const Parallel& parallel) {
  static thread_local std::vector<uint8_t> used;
  used.assign(team_size(parallel), 0);
  const Strip& last = strips.back();
  const Sums sums{room, last.at + m * last.width, used.size(), used.data()};
  size_t widest = 0;
  for (const Strip& s : strips) widest = std::max(widest, s.width);
  const size_t groups = (k + 7) / 8, least = std::max<size_t>(1, kLeast / (8 * widest));
  const size_t columns = (widest + kFinished - 1) / kFinished;
  together<2>(parallel, [&](Member member) {
    int32_t* own = sums.room + member.number * sums.each;
    member.share(groups * strips.size(), least, [&](size_t from, size_t to) {
      if (!sums.used[member.number]) std::memset(own, 0, sums.each * sizeof(int32_t));
      sums.used[member.number] = 1;
      while (from < to) {
        const size_t start = from / groups * groups, stop = std::min(to, start + groups);
        const Strip& s = strips[from / groups];
        kAddRows[m - 1](t, k, s.product->n, (from - start) * 8, std::min(k, (stop - start) * 8),
                        static_cast<const int8_t*>(s.product->w) + s.first, s.count, own + s.at,
                        s.width);
        from = stop;
      }
    });
    member.join();
    const size_t blocks = strips.size() / finish.strips * columns;
    member.share(blocks, kShared, [&](size_t from, size_t to) {
      for (; from < to; ++from) {
        const Strip* s = &strips[from / columns * finish.strips];
        const size_t first = from % columns * kFinished;
        if (first < s->count)
          finish(t, m, s, sums, first, std::min(s->count, first + kFinished));
      }
    });
  });
  strips.clear();
}

// Products of one x; of those that `finish` takes together, all have one width.
void few_tokens(const Tokens& t, size_t m, size_t k, const Product* products, size_t count,
                const Finish& finish, const Parallel& parallel) {
  static thread_local Scratch<int32_t> room;
  static thread_local std::vector<Strip> strips;
  strips.clear();
  const size_t threads = team_size(parallel);
  const size_t most = std::max(kSums / threads, kStrip * m * finish.strips);  // of a thread
  int32_t* sums = room.at_least(most * threads);
  size_t taken = 0;
  for (const Product* p = products; p < products + count; p += finish.strips)
    for (size_t first = 0; first < p->n; first += kStrip) {
      const size_t channels = std::min(kStrip, p->n - first), width = padded(channels, 64);
      if (taken + m * width * finish.strips > most)
        run_strips(t, m, k, strips, finish, sums, parallel), taken = 0;
      for (size_t i = 0; i < finish.strips; ++i, taken += m * width)
        strips.push_back({p + i, first, channels, width, taken});
    }
  run_strips(t, m, k, strips, finish, sums, parallel);
}

}  // namespace

void linear8(const float* x, size_t m, size_t k, const Product* products, size_t count, Gate gate,
             const Parallel& parallel) {
  if (m == 0) return;
  const Tokens t = quantize_tokens(x, m, k, parallel);
  if (m <= kFewTokens) {
    if (gate == Gate::none) return few_tokens(t, m, k, products, count, {gate, 1}, parallel);
    static thread_local Scratch<float> room;
    Product both[] = {products[0], products[count - 1]};
    if (count > 1) both[1].y = room.at_least(m * both[1].n);
    return few_tokens(t, m, k, both, count, {gate, count}, parallel);
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
