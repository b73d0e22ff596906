#pragma once
// Products of tokens with panels of 64 channels, of one byte a weight, by tiles of 16 tokens and of 16
// channels.
//
// Codes and weights lie tile by tile, so that each is read front to back: two tiles of weights are
// multiplied by two of tokens, 64 numbers of each at a time. Tiles are multiplied beside all else a
// core does: what becomes of one product's sums is computed while the next is under way.
#include <utility>

#include "amx.h"
#include "codes.h"
#include "team.h"

namespace vlmc {

constexpr size_t kTiledTokens = 7;  // from here on tiles are faster than vectors
constexpr size_t kNearSteps = 20;   // of half a panel that leaves the first cache room for codes

inline bool tiled(size_t m) { return m >= kTiledTokens && tiles(); }

// What half a panel becomes: y = sums scales + bias, and of it what a gate makes, times `by`.
struct HalfOut {
  const float* scales;
  const float* bias;  // or null
  float* y;           // of token 0
  size_t stride, count;
  Gate gate = Gate::none;
  const float* by = nullptr;  // [m][32], or null
};

// Sums of up to 32 tokens by 32 channels, on their way to y.
struct Unfinished {
  const int32_t* sums = nullptr;  // [32][32]
  const float* scales = nullptr;  // of the tokens
  const HalfOut* out = nullptr;
  size_t first = 0, row = 0, rows = 0;

  // Of `most` more tokens.
  LANES void finish(size_t most) {
    for (const size_t end = std::min(rows, row + most); row < end; ++row) {
      const Floats scale = floats(scales[row]);
      for (size_t c = 0; c < 32; c += 16) {
        if (c >= out->count) break;
        const Mask there = first16(out->count - c);
        const Floats sum = to_floats(load_words(sums + row * 32 + c));
        Floats v = mul(sum, load(there, out->scales + c));
        v = out->bias ? fmadd(v, scale, load(there, out->bias + c)) : mul(v, scale);
        if (out->gate != Gate::none) v = activated(v, out->gate);
        const size_t token = first + row;
        if (out->by) v = mul(v, load(out->by + token * 32 + c));
        store(out->y + token * out->stride + c, there, v);
      }
    }
  }
};

// Memory that is read next, asked for while tiles are multiplied.
struct Ahead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  size_t pace = 0;  // lines in a step

  void step() {
    for (size_t i = 0; i < pace && at < end; ++i, at += 64) _mm_prefetch((const char*)at, _MM_HINT_T1);
  }
};

// Rows first .. last of y: each of a line or two on a page of its own, so that no hardware foresees it.
LANES_INLINE void ask_to_write(const HalfOut& out, size_t first, size_t last) {
  for (; first < last; ++first) {
    char* at = reinterpret_cast<char*>(out.y + first * out.stride);
    asm volatile("prefetchw %0" : : "m"(at[0]));
    asm volatile("prefetchw %0" : : "m"(at[64]));
  }
}

// Two or one tiles of tokens, of `steps` tiles each, by two of channels, to after.sums; what is
// unfinished from before is finished beside it.
template <bool Two>
LANES_INLINE void multiply_tiles(const int8_t* a, const uint8_t* b, size_t steps, int32_t* sums,
                                 Unfinished& before, const Unfinished& after, Ahead& ahead) {
  const size_t some = (32 + steps - 1) / steps, next = 2 * kWholeTile;
  const bool far = steps > kNearSteps;
  VLMC_TILE_ZERO(0);
  VLMC_TILE_ZERO(1);
  if (Two) VLMC_TILE_ZERO(2);
  if (Two) VLMC_TILE_ZERO(3);
  for (size_t step = 0; step < steps; ++step, a += kWholeTile, b += 2 * kWholeTile) {
    if (far) ask_tile(a + next, kTileBytes);
    if (far && Two) ask_tile(a + next + steps * kWholeTile, kTileBytes);
    VLMC_TILE_LOAD(4, a, kTileBytes);
    if (Two) VLMC_TILE_LOAD(5, a + steps * kWholeTile, kTileBytes);
    VLMC_TILE_LOAD(6, b, kTileBytes);
    VLMC_TILE_LOAD(7, b + kWholeTile, kTileBytes);
    VLMC_TILE_INT8(0, 4, 6);
    VLMC_TILE_INT8(1, 4, 7);
    if (Two) VLMC_TILE_INT8(2, 5, 6);
    if (Two) VLMC_TILE_INT8(3, 5, 7);
    ahead.step();
    const size_t row = after.first + step * some, end = after.first + after.rows;
    ask_to_write(*after.out, row, std::min(end, row + some));
    before.finish(some);
  }
  before.finish(32);
  VLMC_TILE_STORE(0, sums, 128);
  VLMC_TILE_STORE(1, sums + 16, 128);
  if (Two) VLMC_TILE_STORE(2, sums + 16 * 32, 128);
  if (Two) VLMC_TILE_STORE(3, sums + 16 * 32 + 16, 128);
}

// A panel whose channels lie as tiles: [2 halves][steps][2][16 groups of 4 numbers][16 channels][4].
struct TilePanel {
  uint8_t* bytes;
  size_t steps;

  // The 64 bytes of a group of four numbers of 16 channels, c the first.
  uint8_t* at(size_t c, size_t group) const {
    return bytes + ((c / 32 * steps + group / 16) * 2 + c / 16 % 2) * kWholeTile + group % 16 * 64;
  }
  size_t size() const { return 4 * steps * kWholeTile; }
};

// m tokens by half a panel.
LANES inline void multiply_half(const Tokens& t, size_t m, const uint8_t* b, const HalfOut& out,
                                Ahead& ahead) {
  alignas(64) int32_t sums[2][32 * 32];
  const size_t steps = t.room / kTileBytes;
  Unfinished before;
  for (size_t i = 0, turn = 0; i < m; i += 32, turn ^= 1) {
    const int8_t* a = t.codes + i * t.room;
    const Unfinished after{sums[turn], t.scales + i, &out, i, 0, std::min<size_t>(32, m - i)};
    if (after.rows > 16)
      multiply_tiles<true>(a, b, steps, sums[turn], before, after, ahead);
    else
      multiply_tiles<false>(a, b, steps, sums[turn], before, after, ahead);
    before = after;
  }
  before.finish(32);
}

// Every token by every panel of the products' channels, and with a gate what it makes of them.
// pack(product, first, panel, scales) lays a panel of a product's channels as tiles; their scales are
// the product's, unless it writes others to `scales`, of 64. next(product, first): what it reads, and
// how many bytes.
template <bool Rescaled, typename Pack, typename Next>
void by_tiles(const Tokens& t, size_t m, const Product* products, size_t count, Gate gate,
              const Parallel& parallel, Pack&& pack, Next&& next) {
  // Codes that the second cache keeps beside weights.
  constexpr size_t kNear = 5 << 18;
  const size_t least = (m * t.room + kNear - 1) / kNear;
  const size_t of_block = padded((m + least - 1) / least, 32);
  const size_t blocks = (m + of_block - 1) / of_block;
  const size_t steps = t.room / kTileBytes, pair = gate != Gate::none && count > 1;
  const auto panels = [](const Product& p) { return (p.n + kPanel - 1) / kPanel; };
  size_t total = 0;
  for (size_t i = 0; i < (pair ? 1 : count); ++i) total += panels(products[i]);
  together<1>(parallel, [&](Member member) {
    static thread_local Scratch<uint8_t> panel_room;
    static thread_local Scratch<float> beside_room;
    const TilePanel panel{panel_room.at_least((1 + pair) * 4 * steps * kWholeTile), steps};
    const TilePanel second{panel.bytes + panel.size(), steps};
    float* beside = pair ? beside_room.at_least(of_block * 32) : nullptr;
    alignas(64) float scales[2][kPanel];
    const TileState state;
    member.share(total * blocks, 1, [&](size_t unit, size_t end) {
      for (; unit < end; ++unit) {
        const size_t begin = unit / total * of_block, rows = std::min(of_block, m - begin);
        const Tokens some{t.codes + begin * t.room, t.scales + begin, t.sums + begin, t.room, true};
        const Product* p = products;
        size_t index = unit % total;
        for (; index >= panels(*p); ++p) index -= panels(*p);
        const size_t channel = index * kPanel;
        pack(*p, channel, panel, scales[0]);
        if (pair) pack(products[1], channel, second, scales[1]);
        const size_t turns = 2 * steps * ((rows + 31) / 32);
        const auto ahead = [&](const Product& of) {
          Ahead made;
          if (unit + 1 >= end || channel + kPanel >= of.n) return made;
          const auto memory = next(of, channel + kPanel);
          made = {memory.first, memory.first + memory.second, 0};
          made.pace = (memory.second / 64 + turns - 1) / turns;
          return made;
        };
        Ahead first_ahead = ahead(*p), second_ahead;
        if (pair) second_ahead = ahead(products[1]);
        for (size_t half = 0; half < 2 && channel + half * 32 < p->n; ++half) {
          const size_t at = channel + half * 32;
          const auto out = [&](const Product& of, const float* own) {
            return HalfOut{Rescaled ? own + half * 32 : static_cast<const float*>(of.scales) + at,
                           of.bias ? of.bias + at : nullptr, of.y + at, of.n,
                           std::min<size_t>(32, of.n - at)};
          };
          const size_t skipped = half * 2 * steps * kWholeTile;
          if (pair) {
            HalfOut lets = out(products[1], scales[1]);
            lets.y = beside, lets.stride = 32;
            multiply_half(some, rows, second.bytes + skipped, lets, second_ahead);
          }
          HalfOut made = out(*p, scales[0]);
          made.y += begin * p->n, made.gate = gate, made.by = beside;
          multiply_half(some, rows, panel.bytes + skipped, made, first_ahead);
        }
      }
    });
  });
}

}  // namespace vlmc
