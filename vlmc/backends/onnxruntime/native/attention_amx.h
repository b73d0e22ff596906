#pragma once
// Attention of factors that are rounded to bfloat16, in products of tiles: only where `tiles()`.
#include <algorithm>
#include <cstddef>

#include "amx.h"
#include "attention_pack.h"
#include "attention_rows.h"
#include "scratch.h"
#include "softmax.h"

namespace vlmc {

constexpr size_t kWords = kTileBytes / 4, kTileWords = kWholeTile / 4;
constexpr size_t kPair = 2 * kTileRows;  // query rows, keys, or numbers of two tiles
constexpr size_t kKeyBlock = 1024;       // keys whose scores are held at a time

// c[16 R][32] = a[16 R][steps][16 words] b[steps][2 tiles] (+ c), the tiles of a step `column`
// apart.
template <size_t R>
inline void multiply_bf16(const float* a, size_t lda, const float* b, size_t step, size_t column,
                          size_t steps, float* c, size_t ldc, bool onto) {
  float* lower = c + kTileRows * ldc;
  if (onto) {
    VLMC_TILE_LOAD(0, c, ldc * 4);
    VLMC_TILE_LOAD(1, c + kWords, ldc * 4);
    if (R == 2) VLMC_TILE_LOAD(2, lower, ldc * 4);
    if (R == 2) VLMC_TILE_LOAD(3, lower + kWords, ldc * 4);
  } else {
    VLMC_TILE_ZERO(0);
    VLMC_TILE_ZERO(1);
    if (R == 2) VLMC_TILE_ZERO(2);
    if (R == 2) VLMC_TILE_ZERO(3);
  }
  for (; steps; --steps, a += kWords, b += step) {
    // All before the products, which tiles on their way would wait for.
    VLMC_TILE_LOAD(4, a, lda * 4);
    if (R == 2) VLMC_TILE_LOAD(5, a + kTileRows * lda, lda * 4);
    VLMC_TILE_LOAD(6, b, kTileBytes);
    VLMC_TILE_LOAD(7, b + column, kTileBytes);
    VLMC_TILE_BF16(0, 4, 6);
    VLMC_TILE_BF16(1, 4, 7);
    if (R == 2) VLMC_TILE_BF16(2, 5, 6);
    if (R == 2) VLMC_TILE_BF16(3, 5, 7);
  }
  VLMC_TILE_STORE(0, c, ldc * 4);
  VLMC_TILE_STORE(1, c + kWords, ldc * 4);
  if (R == 2) VLMC_TILE_STORE(2, lower, ldc * 4);
  if (R == 2) VLMC_TILE_STORE(3, lower + kWords, ldc * 4);
}

// Keys [tiles of 16 keys][tiles of 32 numbers], values [pairs of tiles][tiles of 16 numbers].
struct Tiled {
  const float* keys;
  const float* values;
};

LANES inline Tiled pack_tiles(const Head& keys, const Head& values, size_t low, size_t high,
                              size_t size, size_t room, bool centered) {
  static thread_local Scratch<float> key_room, value_room, mean_room;
  const size_t count = high - low, padded = (count + kPair - 1) / kPair * kPair;
  float* of_keys = key_room.at_least(padded * room / 2);
  float* of_values = value_room.at_least(padded * room / 2);
  float* mean = mean_room.at_least(room);
  std::fill(mean, mean + room, 0.0f);
  if (centered) mean_key(keys, low, high, size, room, mean);
  for (size_t t = 0; t < padded; t += kTileRows) {
    for (size_t next = low + t + 16; next < std::min(high, low + t + 32); ++next) {
      ask(keys.row(next), size * keys.width());
      ask(values.row(next), size * values.width());
    }
    const size_t there = t < count ? std::min(kTileRows, count - t) : 0;
    pack_keys<true>(keys, low + t, there, size, mean, of_keys + t * room / 2, kWords, room);
    pack_value_tiles(values, low + t, there, size, room,
                     of_values + t / kPair * kPair * room / 2 + t % kPair / 2 * kWords);
  }
  return {of_keys, of_values};
}

// `largest` and `sums` of rows so far, and of scores of more keys: see softmax. scale[R]: what the
// sums of values so far are to be multiplied by.
template <size_t R>
LANES void weigh_more(float* scores, size_t width, const Span* seen, Range keys, float* largest,
                      float* sums, float* scale) {
  alignas(64) float tops[R * 16];
  float before[R], more[R];
  Floats top[R];
  for (size_t r = 0; r < R; ++r) top[r] = floats(before[r] = largest[r]);
  raise<R, false>(scores, width, seen, keys.whole, keys.part, top);
  for (size_t r = 0; r < R; ++r) store(tops + r * 16, top[r]);
  softmax<R, true>(scores, width, seen, keys, tops, largest, more);
  for (size_t r = 0; r < R; ++r) {
    scale[r] = before[r] == -INFINITY ? 0 : std::exp2(before[r] - largest[r]);
    sums[r] = sums[r] * scale[r] + more[r];
  }
}

// `count` query rows, in R tiles of 16, from `first` on.
template <size_t R>
LANES void attend_block(const Rows& rows, size_t first, size_t count, size_t end, size_t low,
                        const Tiled& of, const float* queries, size_t room, float* scores,
                        size_t width, float* sums) {
  const size_t words = room / 2;
  const Span front = seen(rows, first, low), back = seen(rows, first + count - 1, low);
  alignas(64) float largest[kPair], weights[kPair], scale[kPair];
  std::fill(largest, largest + kPair, -INFINITY);
  std::fill(weights, weights + kPair, 0.0f);
  const size_t start = front.from / kPair * kPair;
  for (size_t from = start; from < back.to; from += kKeyBlock) {
    const size_t to = std::min<size_t>(from + kKeyBlock, (back.to + kPair - 1) / kPair * kPair);
    for (size_t t = from; t < to; t += kPair)
      multiply_bf16<R>(queries, words, of.keys + t * words, kTileWords, room / 32 * kTileWords,
                       room / 32, scores + t - from, width, false);
    const auto within = [&](size_t key) { return std::min(std::max(key, from), to) - from; };
    Span spans[kPair];
    for (size_t r = 0; r < count; ++r) {
      const Span all = seen(rows, first + r, low);
      spans[r] = {(uint32_t)within(all.from), (uint32_t)within(all.to)};
      if (changed(rows)) change(rows, first + r, low + from, spans[r], scores + r * width);
    }
    Range keys{0, within((back.from + 15) / 16 * 16), within(front.to / 16 * 16), to - from};
    if (keys.part <= keys.whole) keys.whole = keys.part = 0;
    for (size_t r = 0; r < count; r += 4) {
      static constexpr decltype(&weigh_more<1>) kWeigh[] = {weigh_more<1>, weigh_more<2>,
                                                            weigh_more<3>, weigh_more<4>};
      // A few at a time, between other work: all at once, they would wait for each other.
      for (size_t j = first + r; from == start && j < first + std::min(count, r + 4); ++j)
        ask_for(rows, j, j + kPair, end);
      kWeigh[std::min<size_t>(4, count - r) - 1](scores + r * width, width, spans + r, keys,
                                                 largest + r, weights + r, scale + r);
    }
    for (size_t r = 0; from > start && r < count; ++r)
      if (scale[r] != 1)
        for (size_t d = 0; d < room; d += 16)
          store(sums + r * room + d, mul(load(sums + r * room + d), floats(scale[r])));
    for (size_t d = 0; d < room; d += kPair)
      multiply_bf16<R>(scores, width, of.values + from * words + d / 16 * kTileWords, kPair * words,
                       kTileWords, (to - from) / kPair, sums + d, room, from > start);
  }
  for (size_t r = 0; r < count; ++r) answer(rows, first + r, sums + r * room, weights[r]);
}

LANES inline void attend_tiles(const Rows& rows, const Head& keys, const Head& values, size_t begin,
                               size_t end) {
  const AttentionShape& s = rows.shape;
  const size_t size = s.head_size, room = (size + kPair - 1) / kPair * kPair;
  const size_t low = seen(rows, begin).from, high = seen(rows, end - 1).to;
  const Tiled of = pack_tiles(keys, values, low, high, size, room, s.softcap <= 0);
  // Not a multiple of a page: rows would share a few sets of the first cache.
  const size_t width = std::min(kKeyBlock, (high - low + kPair - 1) / kPair * kPair) + 16;
  static thread_local Scratch<float> turn_room, query_room, score_room, sum_room;
  float* turned = turn_room.at_least(kPair * size);
  float* queries = query_room.at_least(kPair * room / 2);
  float* scores = score_room.at_least(kPair * width);
  float* sums = sum_room.at_least(kPair * room);
  const TileState state;
  for (size_t first = begin; first < end; first += kPair) {
    const size_t count = std::min(kPair, end - first);
    take_queries<true, kPair>(rows, first, count, turned, queries, room / 2);
    const auto attend = count > kTileRows ? attend_block<2> : attend_block<1>;
    attend(rows, first, count, end, low, of, queries, room, scores, width, sums);
  }
}

}  // namespace vlmc
