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

constexpr size_t kRows = 24;  // query rows of a part, at least

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

// Pairs: of bfloat16; the head's size is even.
template <bool Pairs>
LANES void attend_rows(const Rows& rows, const Head& keys, const Head& values, size_t begin,
                       size_t end) {
  const AttentionShape& s = rows.shape;
  const size_t size = s.head_size, room = (size + 15) / 16 * 16;
  const size_t inner = Pairs ? size / 2 : size;  // elements of a key
  const size_t low = seen(rows, begin).from, high = seen(rows, end - 1).to;
  const Packed packed = pack<Pairs>(keys, values, low, high, size, s.softcap <= 0);
  const size_t width = (high - low + 15) / 16 * 16;
  static thread_local Scratch<float> turn_room, query_room, score_room, out_room;
  float* turned = turn_room.at_least(kTile * size);
  float* queries = query_room.at_least(kTile * room);
  float* scores = score_room.at_least(kTile * width);
  float* sums = out_room.at_least(kTile * room);
  for (size_t tile = begin; tile < end; tile += kTile) {
    const size_t count = std::min(kTile, end - tile);
    for (size_t r = tile; r < tile + count; ++r) ask_for(rows, r, r + kTile, end);
    take_queries<Pairs, kTile>(rows, tile, count, turned, queries, room);
    Span spans[kTile];
    for (size_t r = 0; r < count; ++r) spans[r] = seen(rows, tile + r, low);
    // Panels that some row sees a key of, and those that are seen whole by all.
    const size_t start = spans[0].from / kPanel * kPanel, stop = spans[count - 1].to;
    size_t whole = (spans[count - 1].from + kPanel - 1) / kPanel * kPanel;
    size_t part = spans[0].to / kPanel * kPanel;
    if (part <= whole) whole = part = start;
    alignas(64) float tops[kTile * 16];
    std::fill(tops, tops + kTile * 16, -INFINITY);
    kScores<Pairs>[count - 1](queries, room, packed.keys + whole * inner, inner,
                              (part - whole) / kPanel, scores + whole, width, tops);
    for (size_t t = start; t < stop; t += kPanel)
      if (t < whole || t >= part)
        multiply<Pairs>(count, queries, room, packed.keys + t * inner, kPanel, inner, scores + t,
                        width, std::min(kPanel, (stop - t + 15) / 16 * 16), false);
    for (size_t r = 0; changed(rows) && r < count; ++r)
      change(rows, tile + r, low, spans[r], scores + r * width);
    float largest[kTile], total[kTile];
    kSoftmax<Pairs>[count - 1](scores, width, spans, {start, whole, part, stop},
                               changed(rows) ? nullptr : tops, largest, total);
    const size_t seen_keys = stop - start;
    const float* weights = scores + (Pairs ? start / 2 : start);
    const float* value = packed.values + (Pairs ? start / 2 : start) * packed.value_stride;
    for (size_t d = 0; d < size; d += kPanel)
      multiply<Pairs>(count, weights, width, value + d, packed.value_stride,
                      Pairs ? (seen_keys + 1) / 2 : seen_keys, sums + d, room,
                      std::min(kPanel, size - d), false);
    for (size_t r = 0; r < count; ++r) answer(rows, tile + r, sums + r * room, total[r]);
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
