#pragma once
// Near panels where no instruction sums products of signed bytes in 32 bits (AVX2).
//
// Codes of a span, four groups, are lifted by what makes the least of a tile's zero, and multiplied as
// they are. Two products are summed in 16 bits, where they saturate if they do not fit, and four such sums
// added in as many, with what the lifting added taken off. That all of it fits is known beforehand, and so
// it is nearly everywhere: two weights of one sign reach no further than their sum times the range of codes,
// and eight products, as |wx| <= (w^2 + x^2) / 2, than half of all squares. Elsewhere codes take the signs of
// weights, whose magnitudes are multiplied: dot_weights, which takes longer.
#include "byte_panel.h"

namespace vlmc {

constexpr size_t kSpan = 4;     // groups
constexpr size_t kAtOnce = 32;  // spans whose reach is compared
constexpr int kMost = 32767;
static_assert(kGatedRows % kNearRows == 0, "tiles begin where gated rows do");

// 16 channels of a span.
struct alignas(64) Span {
  uint8_t weights[kSpan][64];
  int16_t less[32];  // sums of eight weights, times -1
};

// 16 channels of a near panel, and of each span the most that two weights of one sign come to, and half
// of the squares of eight.
struct NearStrip {
  Span* span;
  uint16_t *two, *eight;  // padded to kAtOnce

  static size_t bytes(size_t spans) {
    return spans * sizeof(Span) + padded(spans, kAtOnce) * 2 * sizeof(uint16_t);
  }
  NearStrip(const uint8_t* panel, size_t spans, size_t channel)
      : span(reinterpret_cast<Span*>(const_cast<uint8_t*>(panel) + channel / 16 * bytes(spans))),
        two(reinterpret_cast<uint16_t*>(span + spans)),
        eight(two + padded(spans, kAtOnce)) {}
};

inline size_t spans_of(size_t groups) { return (groups + kSpan - 1) / kSpan; }
inline size_t near_bytes(size_t groups) { return kPanel / 16 * NearStrip::bytes(spans_of(groups)); }

// Of numbers without sign.
LANES_INLINE uint16_t largest16(__m128i x) {
  const __m128i others = _mm_xor_si128(x, _mm_set1_epi16(-1));
  return (uint16_t)~_mm_extract_epi16(_mm_minpos_epu16(others), 0);
}

LANES_INLINE int largest_code(__m128i x) {
  const __m128i others = _mm_sub_epi8(_mm_set1_epi8(127), x);  // without sign
  const __m128i least =
      _mm_min_epu8(_mm_and_si128(others, _mm_set1_epi16(255)), _mm_srli_epi16(others, 8));
  return 127 - _mm_extract_epi16(_mm_minpos_epu16(least), 0);
}

// Writes 16 channels of a near panel, group after group.
class NearWriter {
 public:
  LANES_LAMBDA NearWriter(uint8_t* room, size_t groups, size_t channel)
      : groups_(groups), to_(room, spans_of(groups), channel) {
    open();
  }

  LANES_LAMBDA void put(size_t group, Words four) {
    add(group % kSpan, four);
    if (group % kSpan + 1 < kSpan && group + 1 < groups_) return;
    for (size_t more = group % kSpan + 1; more < kSpan; ++more)
      store_words(to_.span->weights[more], words(0));
    close();
    ++to_.span, ++to_.two, ++to_.eight;
    open();
  }

 private:
  LANES_LAMBDA void open() { less_ = two_ = eight_ = words(0); }

  LANES_LAMBDA void add(size_t at, Words w) {
    store_words(to_.span->weights[at], w);
    const Words magnitudes = byte_magnitudes(w), sum = dot_bytes(bytes(1), w);
    const Words above = dot_bytes(bytes(1), max_bytes(w, words(0)));
    less_ = sub16(less_, sum);
    two_ = max_unsigned16(two_, max_unsigned16(above, sub16(above, sum)));
    eight_ = add_saturated16(eight_, shift_right16(dot_bytes(magnitudes, magnitudes), 1));
  }

  LANES_LAMBDA void close() {
    store_words(to_.span->less, less_);
    *to_.two = most(two_, 0);
    *to_.eight = most(eight_, kSpan);  // halves were rounded down
  }

  static LANES_LAMBDA uint16_t most(Words x, int rounded) {
    const __m256i all = _mm256_max_epu16(x.low, x.high);
    const __m128i eight =
        _mm_max_epu16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    return largest16(_mm_adds_epu16(eight, _mm_set1_epi16((short)rounded)));
  }

  size_t groups_;
  NearStrip to_;
  Words less_, two_, eight_;
};

LANES inline void copy_near(const uint8_t* panel, size_t groups, size_t channels, uint8_t* room) {
  for (size_t c = 0; c < channels; c += 16) {
    NearWriter to(room, groups, c);
    for (size_t group = 0; group < groups; ++group)
      to.put(group, load_words(panel + group * 4 * kPanel + c * 4));
  }
}

// How far codes of a tile let sums of a span reach.
struct Lifted {
  uint16_t two, eight;  // as in NearStrip
  int least;            // what became zero
};

// Lifts codes of a span, of rows that are `room` apart.
LANES_INLINE Lifted lift(int8_t* codes, size_t room, size_t rows) {
  const auto at = [&](size_t i)
                      LANES_LAMBDA { return reinterpret_cast<__m128i*>(codes + i * room); };
  const __m128i zero = _mm_setzero_si128();
  __m128i lowest = _mm_load_si128(at(0)), highest = lowest, eight = zero;
  for (size_t i = 0; i < rows; ++i) {
    const __m128i x = _mm_load_si128(at(i)), magnitudes = _mm_abs_epi8(x);
    lowest = _mm_min_epi8(lowest, x), highest = _mm_max_epi8(highest, x);
    // Halves of squares, rounded up, of two numbers each; then of the eight a lane adds up.
    const __m128i half = _mm_avg_epu16(_mm_maddubs_epi16(magnitudes, magnitudes), zero);
    const __m128i four = _mm_adds_epu16(half, _mm_shuffle_epi32(half, 0x4e));
    eight = _mm_max_epu16(eight, _mm_adds_epu16(four, _mm_shuffle_epi32(four, 0xb1)));
  }
  // -128 is the code of what is no number; its row becomes none, others of the tile are to be right.
  const int least = -largest_code(_mm_sub_epi8(zero, _mm_max_epi8(lowest, _mm_set1_epi8(-127))));
  for (size_t i = 0; i < rows; ++i)
    _mm_store_si128(at(i), _mm_sub_epi8(_mm_load_si128(at(i)), _mm_set1_epi8((char)least)));
  const int range = std::max(1, largest_code(highest) - least);
  return {(uint16_t)(kMost / range), (uint16_t)std::max(0, kMost - largest16(eight)), least};
}

// Lifts the codes of tiles of kNearRows tokens.
LANES inline Tokens near_tokens(Tokens t, size_t m, const Parallel& parallel) {
  static thread_local Scratch<uint16_t> scratch;
  const size_t tiles = (m + kNearRows - 1) / kNearRows, apart = padded(t.room / 16, kAtOnce);
  uint16_t* lifted = scratch.at_least(tiles * 3 * apart);
  constexpr size_t kTiles = 4;  // of a task
  each(parallel, (tiles + kTiles - 1) / kTiles, [&](size_t task) LANES {
    for (size_t tile = task * kTiles; tile < std::min(tiles, (task + 1) * kTiles); ++tile) {
      const size_t first = tile * kNearRows;
      int8_t* codes = t.codes + first * t.room;
      uint16_t* to = lifted + tile * 3 * apart;
      for (size_t k = 0; k < t.room; k += 16, ++to) {
        const Lifted of = lift(codes + k, t.room, std::min(m - first, kNearRows));
        to[0] = of.two, to[apart] = of.eight, to[2 * apart] = (uint16_t)of.least;
      }
    }
  });
  t.lifted = lifted, t.lifted_size = 3 * apart;
  return t;
}

// Bits of the first kAtOnce numbers without sign that are above those of b.
LANES_INLINE uint32_t above16(const uint16_t* a, const uint16_t* b) {
  const auto above = [&](size_t i) LANES_LAMBDA {
    return _mm256_subs_epu16(_mm256_loadu_si256((const __m256i*)(a + i)),
                             _mm256_loadu_si256((const __m256i*)(b + i)));
  };
  const __m256i zero = _mm256_setzero_si256();
  const __m256i none =
      _mm256_packs_epi16(_mm256_cmpeq_epi16(above(0), zero), _mm256_cmpeq_epi16(above(16), zero));
  return ~(uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(none, 0xd8));
}

// What is asked for of memory while a tile takes a span: the lines at `at` and half a step behind.
struct Asks {
  const uint8_t* at;
  size_t step;
};

// R tokens, from `first` on, by 16 channels. Whole: there are as many, not fewer.
template <size_t R, bool Whole, bool Bias>
LANES_INLINE void near_tile(const Tokens& t, const NearStrip& strip, size_t spans, const Asks& asks,
                            const Out& out, size_t first) {
  const Tokens here = t.from(first);
  const size_t room = t.room, apart = t.lifted_size / 3;
  const uint16_t *two = here.lifted, *eight = two + apart, *least = eight + apart;
  alignas(64) int32_t kept[R][16] = {};  // registers hold sums of a span, of 16 bits
  const auto four = [&](size_t i, size_t r, size_t g) LANES_LAMBDA {
    int32_t codes;
    std::memcpy(&codes, here.codes + (i * kSpan + g) * 4 + r * room, 4);
    return words(codes);
  };
  for (size_t begin = 0; begin < spans; begin += kAtOnce) {
    const uint32_t all = spans - begin < kAtOnce ? (1u << (spans - begin)) - 1 : ~0u;
    const uint32_t far = all & (above16(strip.two + begin, two + begin) |
                                above16(strip.eight + begin, eight + begin));
    for (uint32_t near = all & ~far; near; near &= near - 1) {
      const size_t i = begin + (size_t)__builtin_ctz(near);
      const Span& span = strip.span[i];
      const Words less = mul_low16(load_words(span.less), shorts((int16_t)-least[i]));
      ask_line(asks.at + i * asks.step);
      ask_line(asks.at + i * asks.step + asks.step / 2);
      Words sum[R];
#pragma GCC unroll 4
      for (size_t g = 0; g < kSpan; ++g) {
        const Words w = load_words(span.weights[g]);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r) {
          sum[r] = add16(g == 0 ? less : sum[r], dot_bytes(four(i, r, g), w));
          hold(sum[r]);
        }
      }
      int32_t* to = kept[0];
      asm("" : "+r"(to) : : "memory");  // else gcc 12 has `kept` in registers, and spills sums
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r)
        store_words(to + r * 16, dot_shorts(load_words(to + r * 16), sum[r], shorts(1)));
    }
    if (!far) continue;
    Words acc[R];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) acc[r] = load_words(kept[r]);
    for (uint32_t rest = far; rest; rest &= rest - 1) {
      const size_t i = begin + (size_t)__builtin_ctz(rest);
      const Words up = bytes((int8_t)least[i]);
      for (size_t g = 0; g < kSpan; ++g) {
        const Words w = load_words(strip.span[i].weights[g]);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r)
          acc[r] = dot_weights(acc[r], w, add_bytes(four(i, r, g), up));
      }
    }
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) store_words(kept[r], acc[r]);
  }
  Words sums[R][1];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) sums[r][0] = load_words(kept[r]);
  write_tile<R, 1, Whole, Bias>(sums, t, out, first);
}

template <bool Whole, bool Bias>
LANES void near_tiles(const Tokens& t, size_t m, const NearStrip& strip, size_t spans, Asks asks,
                      const Out& out) {
  size_t i = 0;
  for (; i + kNearRows <= m; i += kNearRows, asks.at += spans * asks.step)
    near_tile<kNearRows, Whole, Bias>(t, strip, spans, asks, out, i);
  switch (m - i) {
    case 5: return near_tile<5, Whole, Bias>(t, strip, spans, asks, out, i);
    case 4: return near_tile<4, Whole, Bias>(t, strip, spans, asks, out, i);
    case 3: return near_tile<3, Whole, Bias>(t, strip, spans, asks, out, i);
    case 2: return near_tile<2, Whole, Bias>(t, strip, spans, asks, out, i);
    case 1: return near_tile<1, Whole, Bias>(t, strip, spans, asks, out, i);
    default: return;
  }
}

// Every token by one near panel.
inline void multiply_near(const Tokens& t, size_t m, const Panel& panel, size_t groups,
                          const Out& out) {
  using Tiles = void (*)(const Tokens&, size_t, const NearStrip&, size_t, Asks, const Out&);
  static constexpr Tiles kTiles[2][2] = {{near_tiles<false, false>, near_tiles<false, true>},
                                         {near_tiles<true, false>, near_tiles<true, true>}};
  const size_t spans = spans_of(groups);
  Asks asks = panel.ahead ? Asks{panel.ahead, panel.pace} : Asks{panel.bytes, 0};
  // Codes of some rows and a strip lie in the second cache together.
  for (size_t row = 0; row < m; row += kGatedRows) {
    const size_t rows = std::min(kGatedRows, m - row);
    for (size_t c = 0; c < out.count; c += 16) {
      Out to = out.from(c);
      to.y += row * out.stride;
      kTiles[to.count >= 16][out.bias != nullptr](
          t.from(row), rows, NearStrip(panel.bytes, spans, c), spans, asks, to);
      asks.at += (rows + kNearRows - 1) / kNearRows * spans * asks.step;
    }
  }
}

}  // namespace vlmc
