// Products of few tokens with weights in blocks, or of any with those at 8 bits: a panel's bytes are
// read front to back, once.
#include <type_traits>

#include "ahead.h"
#include "codes.h"
#include "linear_blocks.h"
#include "team.h"

namespace vlmc {
namespace {

constexpr size_t kScalesAhead = 4096;  // bytes of codes before whose scales theirs are asked for
constexpr size_t kCodesAhead = 2048;   // bytes of codes that are asked for, if not as a Course does

// Tokens quantized block by block. At 4 bits, of eight codes the even ones come first, as the low
// halves of four bytes of weights do.
struct BlockTokens {
  int8_t* codes;   // [m, blocks, block]
  float* scales;   // [m, blocks]
  int32_t* minus;  // [m, blocks]: the sum of a block's codes, negative, in the low 16 bits
};

BlockTokens block_token_room(size_t m, size_t blocks, size_t block) {
  static thread_local Scratch<int8_t> codes;
  static thread_local Scratch<float> scales;
  static thread_local Scratch<int32_t> minus;
  const size_t all = m * blocks;
  return {codes.at_least(all * block), scales.at_least(all), minus.at_least(all)};
}

// Blocks first .. last of all tokens'.
LANES void quantize_blocks(const float* x, size_t k, int bits, size_t block, size_t first,
                           size_t last, const BlockTokens& t) {
  const size_t blocks = (k + block - 1) / block;
  const __m128i even_first = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  for (size_t at = first; at < last; ++at) {
    const size_t b = at % blocks, count = std::min(block, k - b * block);
    const float* from = x + at / blocks * k + b * block;
    const float scale = (largest(from, count) + kSmallest) * (1 / 127.0f);
    const Floats by = floats(1 / scale);
    Words sum = words(0);
    for (size_t j = 0; j < block; j += 16) {
      const Mask there = j < count ? first16(count - j) : 0;
      const Words q = to_words(mul(load(there, from + j), by));
      const __m128i bytes = to_bytes_saturated(q);
      sum = add(sum, q);
      _mm_storeu_si128((__m128i*)(t.codes + at * block + j),
                       bits == 4 ? _mm_shuffle_epi8(bytes, even_first) : bytes);
    }
    t.scales[at] = scale;
    t.minus[at] = -reduce_add(sum) & 0xffff;
  }
}

LANES_INLINE Words four_codes(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return words(four);
}

// y of Panels panels' channels, those that are there, for R tokens. The panels, `first` and others `apart`
// panels from each other, are read in turns. Vectors: of codes of a block, or 0 where that is not known
// beforehand.
template <int Bits, size_t R, size_t Panels, size_t Vectors>
LANES_INLINE void dot_together(const BlockTokens& x, const BlockPanels& w, size_t first,
                               size_t apart, const Course& course, const Product& of, float* y) {
  constexpr bool kNear = Panels > 1 || kBlocksInALine;
  const Words low = bytes(15);
  const size_t vectors = Vectors ? Vectors : w.bytes / 64, room = w.blocks * w.block;
  const size_t blocks_ahead = kScalesAhead / w.bytes;
  BlockPanel panels[Panels];
  Floats acc[Panels][R];
#pragma GCC unroll 2
  for (size_t s = 0; s < Panels; ++s) {
    const size_t panel = first + s * apart, c = panel * kLanes;
    panels[s] = w[panel];
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r)
      acc[s][r] = of.bias ? load(first16(of.n - c), of.bias + c) : floats(0);
  }
  const uint8_t* codes = panels[0].codes;
  const size_t to_next = apart * w.blocks * w.bytes;
  const int8_t* a = x.codes;
  for (size_t b = 0; b < w.blocks; ++b) {
    NibbleSum sum[Panels][R];  // of bytes at 8 bits
#pragma GCC unroll 2
    for (size_t s = 0; s < Panels; ++s)
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) sum[s][r].begin();
#pragma GCC unroll 8
    for (size_t g = 0; g < vectors; ++g, codes += 64, a += 32 / Bits) {
#pragma GCC unroll 2
      for (size_t s = 0; s < Panels; ++s) {
        const uint8_t* at = codes + s * to_next;
        if (kNear) ask_line(at + kCodesAhead / Panels);
        if (!kNear && g % 4 == 0) course.ask_four(at);
        const Words v = load_words(at);
        const Words even = Bits == 4 ? bit_and(v, low) : shifted_by_128(v);
        const Words odd = bit_and(shift_right16(v, 4), low);
#pragma GCC unroll 8
        for (size_t r = 0; r < R; ++r) {
          NibbleSum& of_row = sum[s][r];
          const Words codes = four_codes(a + r * room);
          if (Bits == 8) of_row.sum = dot_weights(of_row.sum, even, codes), hold(of_row.sum);
          if (Bits == 4) of_row.add(even, codes);
          if (Bits == 4) of_row.add(odd, four_codes(a + r * room + 4));
          if (Bits == 4 && ((g + 1) % NibbleSum::kMost == 0 || g + 1 == vectors)) of_row.settle();
        }
      }
    }
#pragma GCC unroll 2
    for (size_t s = 0; s < Panels; ++s) {
      const BlockPanel& panel = panels[s];
      const Words zeros = zeros_of<Bits>(panel, b);
      if (b % 2)
        _mm_prefetch((const char*)(panel.scales + (b + blocks_ahead) * kLanes), _MM_HINT_T0);
      if (Bits == 4 && b % 8 == 7)
        _mm_prefetch((const char*)(panel.zeros + (b + blocks_ahead) / 2 * kLanes), _MM_HINT_T0);
      const Floats scales = scales_of(panel, b);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        const size_t at = r * w.blocks + b;
        const Words less = words(x.minus[at]), all = sum[s][r].sum;
        const Floats f = to_floats(Bits == 4 || kShift ? dot_shorts(all, zeros, less) : all);
        acc[s][r] = fmadd(mul(f, scales), floats(x.scales[at]), acc[s][r]);
      }
    }
  }
#pragma GCC unroll 2
  for (size_t s = 0; s < Panels; ++s) {
    const size_t c = (first + s * apart) * kLanes;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) store(y + r * of.n + c, first16(of.n - c), acc[s][r]);
  }
}

// y of the panels from `first` up to `last`.
template <int Bits, size_t R>
LANES void dot_panels(const BlockTokens& x, const BlockPanels& w, size_t first, size_t last,
                      const Course& course, const Product& of, float* y) {
  constexpr size_t kUsual = 32, kVectors = kUsual * Bits / 32;
  constexpr bool kFit = R <= (Bits == 4 ? 1 : 2);  // sums of two panels in registers
  using One = std::integral_constant<size_t, 1>;
  using Some = std::integral_constant<size_t, kFit ? 2 : 1>;
  const size_t apart = (kFit && in_streams()) ? (last - first) / Some() : 0;
  const auto together = [&](auto panels, size_t i) LANES_LAMBDA {
    if (w.block == kUsual)
      dot_together<Bits, R, panels(), kVectors>(x, w, i, apart, course, of, y);
    else
      dot_together<Bits, R, panels(), 0>(x, w, i, apart, course, of, y);
  };
  for (size_t i = first; i < first + apart; ++i) together(Some(), i);
  for (size_t i = first + apart * Some(); i < last; ++i) together(One(), i);
}

using DotPanels = void (*)(const BlockTokens&, const BlockPanels&, size_t, size_t, const Course&,
                           const Product&, float*);
constexpr DotPanels kDotPanels[2][kFewTokens] = {
    {dot_panels<4, 1>, dot_panels<4, 2>, dot_panels<4, 3>, dot_panels<4, 4>, dot_panels<4, 5>,
     dot_panels<4, 6>, dot_panels<4, 7>, dot_panels<4, 8>},
    {dot_panels<8, 1>, dot_panels<8, 2>, dot_panels<8, 3>, dot_panels<8, 4>, dot_panels<8, 5>,
     dot_panels<8, 6>, dot_panels<8, 7>, dot_panels<8, 8>}};

size_t panels_of(const Product& p) { return (p.n + kLanes - 1) / kLanes; }

}  // namespace

void linear_blocks_few(const float* x, size_t m, size_t k, int bits, size_t block,
                       const Product* products, size_t count, Gate gate,
                       const Parallel& parallel) {
  const size_t blocks = (k + block - 1) / block;
  const BlockTokens t = block_token_room(m, blocks, block);
  const DotPanels run = kDotPanels[bits == 4 ? 0 : 1][m - 1];
  // Of a thread that reads up to panel `end`, and goes on.
  const auto panels = [&](const Product& p, size_t first, size_t last, size_t end, const void* then,
                          float* y) {
    const BlockPanels w(p, k, bits, block);
    run(t, w, first, last, {w[end].codes, then}, p, y);
  };
  size_t all = 0;
  for (size_t i = 0; i < (gate == Gate::none ? count : 1); ++i) all += panels_of(products[i]);
  static thread_local Scratch<float> room;
  const bool two = gate != Gate::none && count > 1;
  float* beside = two ? room.at_least(m * products[1].n) : nullptr;
  constexpr size_t kLeast = 2;  // panels
  constexpr size_t kShared = 64;  // blocks that are worth another thread's while
  const bool shared = m * blocks >= kShared;
  if (!shared) quantize_blocks(x, k, bits, block, 0, m * blocks, t);
  together<2>(parallel, [&](Member member) {
    if (shared) {
      member.share(m * blocks, 16, [&](size_t first, size_t last) {
        quantize_blocks(x, k, bits, block, first, last, t);
      });
      member.join();
    }
    const char* const then = member.front_after();
    member.share(all, kLeast, [&](size_t first, size_t last) {
      size_t end = member.end_of_run(first, last);
      if (gate != Gate::none) {
        const size_t n = products[0].n, c = first * kLanes;
        panels(products[0], first, last, end, then, products[0].y);
        if (two) panels(products[1], first, last, end, then ? then + kStretch : nullptr, beside);
        return gate_rows(gate, m, std::min(last * kLanes, n) - c, two ? beside + c : nullptr, n,
                         products[0].y + c, n);
      }
      // Panels of all products follow each other.
      for (const Product* p = products; first < last; ++p) {
        const size_t here = panels_of(*p);
        const void* on = end > here ? p[1].w : then;
        if (first < here) panels(*p, first, std::min(last, here), std::min(end, here), on, p->y);
        first -= std::min(first, here), last -= std::min(last, here), end -= std::min(end, here);
      }
    });
  });
}

}  // namespace vlmc
