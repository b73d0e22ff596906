// Scaled dot-product attention in float32: of decoders, over a cache that is extended in
// place, and of towers. Scores of a few query rows are computed for all keys they may see, and for
// no other; then softmax; then the sum of values: scores stay in the first cache. Between products
// that are quantized anyway, the factors of both products may be rounded to bfloat16; sums and
// softmax stay float32.
#include <algorithm>
#include <cstring>
#include <functional>

#include "amx.h"
#include "attention_pack.h"
#include "attention_rows.h"
#include "attention_step.h"
#include "attention_tile.h"
#include "bfloat16.h"
#include "float_tile.h"
#include "kernels.h"
#include "rotary.h"
#include "scratch.h"
#include "softmax.h"
#ifndef VLMC_AVX2
#include "attention_amx.h"
#endif

namespace vlmc {
namespace {

constexpr size_t kRows = 24;     // query rows of a part, at least
constexpr size_t kTogether = 4;  // tiles of query rows, at most

// Keys as panels, and values, row by row; of Pairs, words of two bfloat16.
struct Packed {
  const float* keys;
  const float* values;
  size_t value_stride;
};

template <bool Pairs>
LANES Packed pack(const Head& keys, const Head& values, size_t low, size_t high, size_t size,
                  bool centered) {
  static thread_local Scratch<float> key_room, value_room, mean_room;
  const size_t words = Pairs ? size / 2 : size, count = high - low;
  float* panels = key_room.at_least((count + kPanel - 1) / kPanel * kPanel * words);
  // Heads that lie side by side are a power of two apart in most models: their rows would share a
  // few sets of each cache.
  const bool copied = Pairs || values.half || values.stride != size;
  float* rows = copied ? value_room.at_least((count + 15) / 16 * 16 * size) : nullptr;
  // What all keys have in common changes all scores of a row alike, and no weight: so where it is
  // large, as where keys have a bias, it need not be rounded.
  const size_t room = (size + 31) / 32 * 32;
  float* mean = Pairs ? mean_room.at_least(room) : nullptr;
  if (Pairs) std::fill(mean, mean + room, 0.0f);
  if (Pairs && centered) mean_key(keys, low, high, size, room, mean);
  for (size_t t = 0; t < count; t += 16) {
    for (size_t next = low + t + 16; next < std::min(high, low + t + 32); ++next) {
      ask(keys.row(next), size * keys.width());
      if (copied) ask(values.row(next), size * values.width());
    }
    const size_t there = std::min<size_t>(16, count - t);
    pack_keys<Pairs>(keys, low + t, there, size, mean,
                     panels + t / kPanel * kPanel * words + t % kPanel, kPanel, size);
    if (copied) pack_values<Pairs>(values, low + t, there, size, rows + (Pairs ? t / 2 : t) * size);
  }
  if (copied) return {panels, rows, size};
  return {panels, static_cast<const float*>(values.from) + low * values.stride, values.stride};
}

// Query rows of a tile: what they see, and where they see whole panels of it.
struct Seen {
  size_t first, count;
  size_t start, stop, whole, part;  // keys; but for `stop` where panels begin
  Span spans[kTile];
  alignas(64) float tops[kTile * 16];  // the largest of their scores, by lanes

  void of(const Rows& rows, size_t from, size_t end, size_t low) {
    first = from, count = std::min(kTile, end - from);
    for (size_t r = 0; r < count; ++r) spans[r] = seen(rows, first + r, low);
    start = spans[0].from / kPanel * kPanel, stop = spans[count - 1].to;
    whole = (spans[count - 1].from + kPanel - 1) / kPanel * kPanel;
    part = spans[0].to / kPanel * kPanel;
    if (part <= whole) whole = part = start;
    std::fill(tops, tops + kTile * 16, -INFINITY);
  }
};

// Tiles that take turns with what is near of keys and of values: of a long head all of them would be
// read from afar for each tile. As many as keep their scores near.
size_t tiles_together(size_t width) {
  constexpr size_t kScores = 64 << 10;
  return std::clamp<size_t>(kScores / (kTile * std::max<size_t>(width, 1)), 1, kTogether);
}

// Pairs: of bfloat16; the head's size is even.
template <bool Pairs>
LANES void attend_rows(const Rows& rows, const Head& keys, const Head& values, size_t begin,
                       size_t end) {
  const AttentionShape& s = rows.shape;
  const size_t size = s.head_size, room = (size + 15) / 16 * 16;
  const size_t inner = Pairs ? size / 2 : size;  // elements of a key
  const size_t low = seen(rows, begin).from, high = seen(rows, end - 1).to;
  const Packed packed = pack<Pairs>(keys, values, low, high, size, s.softcap <= 0);
  const size_t width = (high - low + 15) / 16 * 16, together = tiles_together(width);
  static thread_local Scratch<float> turn_room, query_room, score_room, out_room;
  float* const turned = turn_room.at_least(kTile * size);
  float* const queries = query_room.at_least(together * kTile * room);
  float* const scores = score_room.at_least(together * kTile * width);
  float* const sums = out_room.at_least(together * kTile * room);
  Seen seen_by[kTogether];
  for (size_t first = begin; first < end; first += together * kTile) {
    const size_t tiles = std::min(together, (end - first + kTile - 1) / kTile);
    const auto query = [&](size_t i) { return queries + i * kTile * room; };
    const auto score = [&](size_t i) { return scores + i * kTile * width; };
    const auto sum = [&](size_t i) { return sums + i * kTile * room; };
    size_t whole = high - low, part = 0;
    for (size_t i = 0; i < tiles; ++i) {
      Seen& tile = seen_by[i];
      tile.of(rows, first + i * kTile, end, low);
      for (size_t r = tile.first; r < tile.first + tile.count; ++r)
        ask_for(rows, r, r + together * kTile, end);
      take_queries<Pairs, kTile>(rows, tile.first, tile.count, turned, query(i), room);
      whole = std::min(whole, tile.whole), part = std::max(part, tile.part);
      if (tile.start >= tile.stop) std::fill(sum(i), sum(i) + tile.count * room, 0.0f);
    }
    for (size_t t = whole; t < part; t += kPanel)
      for (size_t i = 0; i < tiles; ++i)
        if (Seen& tile = seen_by[i]; t >= tile.whole && t < tile.part)
          kScores<Pairs>[tile.count - 1](query(i), room, packed.keys + t * inner, inner, 1,
                                         score(i) + t, width, tile.tops);
    float total[kTogether][kTile];
    for (size_t i = 0; i < tiles; ++i) {
      Seen& tile = seen_by[i];
      for (size_t t = tile.start; t < tile.stop; t += kPanel)
        if (t < tile.whole || t >= tile.part)
          multiply<Pairs>(tile.count, query(i), room, packed.keys + t * inner, kPanel, inner,
                          score(i) + t, width, std::min(kPanel, (tile.stop - t + 15) / 16 * 16),
                          false);
      for (size_t r = 0; changed(rows) && r < tile.count; ++r)
        change(rows, tile.first + r, low, tile.spans[r], score(i) + r * width);
      float largest[kTile];
      kSoftmax<Pairs>[tile.count - 1](score(i), width, tile.spans,
                                      {tile.start, tile.whole, tile.part, tile.stop},
                                      changed(rows) ? nullptr : tile.tops, largest, total[i]);
    }
    constexpr size_t kValues = 4 * kPanel;  // that are near at once
    for (size_t t = seen_by[0].start; t < seen_by[tiles - 1].stop; t += kValues)
      for (size_t i = 0; i < tiles; ++i) {
        const Seen& tile = seen_by[i];
        const size_t from = std::max(t, tile.start), to = std::min(t + kValues, tile.stop);
        const size_t at = Pairs ? from / 2 : from;
        for (size_t d = 0; from < to && d < size; d += kPanel)
          multiply<Pairs>(tile.count, score(i) + at, width,
                          packed.values + at * packed.value_stride + d, packed.value_stride,
                          Pairs ? (to - from + 1) / 2 : to - from, sum(i) + d, room,
                          std::min(kPanel, size - d), from > tile.start);
      }
    for (size_t i = 0; i < tiles; ++i)
      for (size_t r = 0; r < seen_by[i].count; ++r)
        answer(rows, seen_by[i].first + r, sum(i) + r * room, total[i][r]);
  }
}

// Heads of `count` tokens into a cache, turned on the way.
LANES void append_turned(const float* from, size_t stride, size_t count, size_t size,
                         const Turn& by, void* to, bool half) {
  if (!by.half) return append(from, stride, count, size, to, half);
  static thread_local Scratch<float> room;
  float* turned = room.at_least(size);
  for (size_t t = 0; t < count; ++t) {
    turn(from + t * stride, 1, size, by.half, by.cos + t * by.half, by.sin + t * by.half, turned);
    append(turned, 0, 1, size, static_cast<char*>(to) + t * size * (half ? 2 : 4), half);
  }
}

// Parts of the query rows, so that there is work for every thread; later rows see more keys.
size_t slices(size_t rows, size_t others, size_t threads) {
  if (threads <= 1) return 1;
  const size_t wanted = (4 * threads + others - 1) / others;
  return std::max<size_t>(1, std::min(wanted, rows / kRows));
}

using HeadOf = std::function<bool(size_t, size_t, Rows*, Head*, Head*)>;

template <bool Pairs>
void attend_all(const AttentionShape& s, size_t batch, size_t step, const Parallel& parallel,
                const HeadOf& head_of) {
  if (batch == 0 || step == 0) return;
  const size_t rows = step * s.group, kv_heads = s.heads / s.group;
  const size_t parts = slices(rows, batch * kv_heads, parallel.threads);
  const size_t of_part = (rows + parts - 1) / parts;
  each(parallel, batch * kv_heads * parts, [&](size_t task) {
    const size_t part = parts - 1 - task % parts;  // the longest first
    Rows of{s, nullptr, nullptr, nullptr, {}, 0, 0};
    Head keys, values;
    const size_t begin = part * of_part, end = std::min(rows, begin + of_part);
    const size_t head = task / parts;
    if (begin >= end || !head_of(head / kv_heads, head % kv_heads, &of, &keys, &values)) return;
#ifndef VLMC_AVX2
    if (Pairs && tiles()) return attend_tiles(of, keys, values, begin, end);
#endif
    attend_rows<Pairs>(of, keys, values, begin, end);
  });
}

void attend(const AttentionShape& s, size_t batch, size_t step, const Parallel& parallel,
            [[maybe_unused]] bool rounded, const HeadOf& head_of) {
#ifndef VLMC_AVX2
  static const bool known = __builtin_cpu_supports("avx512bf16");
  if (rounded && known && s.head_size % 2 == 0)
    return attend_all<true>(s, batch, step, parallel, head_of);
#endif
  attend_all<false>(s, batch, step, parallel, head_of);
}

}  // namespace

void cached_attention(const AttentionShape& s, size_t batch, size_t step, size_t capacity,
                      const float* query, const float* key, const float* value, const Turn& by,
                      const int32_t* lengths, void* keys, void* values, bool half, bool rounded,
                      float* out, const Parallel& parallel) {
  const size_t kv_heads = s.heads / s.group, size = s.head_size, width = half ? 2 : 4;
  if (step == 1 && by.half) {
    static thread_local Scratch<float> turn_room;
    float* turned = turn_room.at_least(batch * kv_heads * size);
    rotate(query, batch, s.heads, size, by, out, parallel);
    rotate(key, batch, kv_heads, size, by, turned, parallel);
    query = out, key = turned;
  }
  if (step == 1)
    return step_attention(s, batch, capacity, query, key, value, lengths, keys, values, half, out,
                          parallel);
  const auto at = [&](void* cache, size_t b, size_t h, size_t t) {
    return static_cast<char*>(cache) + ((b * kv_heads + h) * capacity + t) * size * width;
  };
  const auto fits = [&](size_t b) {
    return lengths[b] >= (int64_t)step && (size_t)lengths[b] <= capacity;
  };
  each(parallel, batch * kv_heads, [&](size_t task) {
    const size_t b = task / kv_heads, h = task % kv_heads;
    if (!fits(b)) {  // a slot that holds nothing
      const size_t group = s.group * size;
      for (size_t t = 0; t < step; ++t)
        std::memset(out + (b * step + t) * s.heads * size + h * group, 0, group * sizeof(float));
      return;
    }
    const size_t past = lengths[b] - step, from = (b * step * kv_heads + h) * size;
    const Turn of{by.cos + b * step * by.half, by.sin + b * step * by.half, by.half};
    append_turned(key + from, kv_heads * size, step, size, of, at(keys, b, h, past), half);
    append(value + from, kv_heads * size, step, size, at(values, b, h, past), half);
  });
  const auto head_of = [&](size_t b, size_t h, Rows* rows, Head* k, Head* v) {
    if (!fits(b)) return false;
    const size_t from = b * step * s.heads * size + h * s.group * size;
    rows->query = query + from, rows->out = out + from;
    rows->total = lengths[b], rows->past = lengths[b] - step;
    rows->by = {by.cos + b * step * by.half, by.sin + b * step * by.half, by.half};
    *k = {at(keys, b, h, 0), size, half};
    *v = {at(values, b, h, 0), size, half};
    return true;
  };
  attend(s, batch, step, parallel, rounded, head_of);
}

void tower_attention(const AttentionShape& s, size_t batch, size_t step, size_t total,
                     const float* query, const float* key, const float* value, const float* bias,
                     size_t bias_batch_stride, bool rounded, float* out, const Parallel& parallel) {
  const size_t kv_heads = s.heads / s.group, size = s.head_size;
  const auto head_of = [&](size_t b, size_t h, Rows* rows, Head* k, Head* v) {
    const size_t from = b * step * s.heads * size + h * s.group * size;
    const size_t kv_from = (b * total * kv_heads + h) * size;
    rows->query = query + from, rows->out = out + from, rows->total = total, rows->past = 0;
    if (bias) rows->bias = bias + b * bias_batch_stride + h * s.group * s.bias_head_stride;
    *k = {key + kv_from, kv_heads * size, false};
    *v = {value + kv_from, kv_heads * size, false};
    return true;
  };
  attend(s, batch, step, parallel, rounded, head_of);
}

}  // namespace vlmc
