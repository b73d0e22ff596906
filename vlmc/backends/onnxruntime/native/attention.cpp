// Scaled dot-product attention in float32 on AVX-512: of decoders, over a cache that is extended in
// place, and of towers. Scores of a few query rows are computed for all keys they may see, and for
// no other; then softmax; then the sum of values. Of towers whose products are quantized anyway, the
// factors of both products may be rounded to bfloat16; sums and softmax stay float32.
#include "kernels.h"

#include <algorithm>
#include <cfloat>
#include <cstring>
#include <functional>

#include "attention_step.h"
#include "bfloat16.h"
#include "float_tile.h"
#include "scratch.h"
#include "softmax.h"

namespace vlmc {
namespace {

constexpr size_t kRows = 24;  // query rows whose scores are kept

// Keys or values of one head: element (t, d) lies at `from`[t * stride + d].
struct Head {
  const void* from;
  size_t stride;
  bool half;
};

// To scores, which are in base 2.
AVX512 void add_bias(float* row, const float* bias, size_t count) {
  for (size_t i = 0; i < count; i += 16) {
    const __mmask16 there = first16(count - i);
    const __m512 add = _mm512_maskz_loadu_ps(there, bias + i);
    const __m512 score = _mm512_maskz_loadu_ps(there, row + i);
    const __m512 sum = _mm512_fmadd_ps(add, _mm512_set1_ps(kLog2E), score);
    // What is hidden by the lowest number is not hidden from who sees nothing else.
    const __mmask16 finite = _mm512_cmp_ps_mask(add, _mm512_set1_ps(-INFINITY), _CMP_NEQ_UQ);
    const __m512 lowest = _mm512_set1_ps(-FLT_MAX);
    _mm512_mask_storeu_ps(row + i, there, _mm512_mask_max_ps(sum, finite, lowest, sum));
  }
}

// The query rows of one key head in one batch row: row r is step r / group, head r % group.
struct Rows {
  const AttentionShape& shape;
  const float* query;  // of step 0, the group's first head
  float* out;          // likewise
  const float* bias;   // of step 0, that head, or null
  size_t past, total;
};

// What row r may see: keys first .. last.
inline void seen(const Rows& rows, size_t r, size_t* first, size_t* last) {
  const AttentionShape& s = rows.shape;
  *last = s.causal ? rows.past + r / s.group + 1 : rows.total;
  *first = s.window && *last > s.window ? *last - s.window : 0;
}

// Pairs: of bfloat16. Every row sees all keys, the head's size is even, and the caches are float32.
template <bool Pairs>
AVX512 void attend_rows(const Rows& rows, const Head& keys, const Head& values, size_t begin,
                        size_t end) {
  const AttentionShape& s = rows.shape;
  const size_t size = s.head_size, room = (size + 15) / 16 * 16;
  const size_t inner = Pairs ? size / 2 : size;  // elements of a key
  size_t low, high, unused;
  seen(rows, begin, &low, &unused);
  seen(rows, end - 1, &unused, &high);
  const size_t panels = (high - low + kPanel - 1) / kPanel, width = panels * kPanel;
  static thread_local Scratch<float> key_room, value_room, query_room, score_room, out_room;
  float* packed = key_room.at_least(panels * inner * kPanel);
  float* queries = query_room.at_least(kRows * room);
  float* scores = score_room.at_least(kRows * width);
  float* sums = out_room.at_least(kTile * room);
  if (Pairs) {
    float* words = value_room.at_least((high - low + 1) / 2 * 2 * size);
    for (size_t t = low; t < high; ++t)
      pair_up(static_cast<const float*>(keys.from) + t * keys.stride, size,
              words + (t - low) * inner);
    pack_panels(words, false, inner, 0, high - low, inner, packed);
  } else {
    pack_panels(keys.from, keys.half, keys.stride, low, high, size, packed);
  }
  const float* value = static_cast<const float*>(values.from) + low * values.stride;
  size_t value_stride = values.stride;
  // Heads that lie side by side are a power of two apart in most models: their rows would share a
  // few sets of each cache.
  if (Pairs) {
    float* words = value_room.at_least((high - low + 1) / 2 * 2 * size);
    pair_rows(value, value_stride, high - low, size, words);
    value = words, value_stride = size;
  } else if (values.half || values.stride != size) {
    float* plain = value_room.at_least((high - low) * size);
    for (size_t t = low; t < high; ++t)
      for (size_t d = 0; d < size; d += 16)
        _mm512_mask_storeu_ps(plain + (t - low) * size + d, first16(size - d),
                              load(values.from, values.half, t * values.stride + d,
                                   first16(size - d)));
    value = plain, value_stride = size;
  }
  const size_t steps_apart = s.heads * size;
  const auto place = [&](size_t r) { return r / s.group * steps_apart + r % s.group * size; };
  for (size_t block = begin; block < end; block += kRows) {
    const size_t count = std::min(kRows, end - block);
    for (size_t r = 0; r < count; ++r) {
      const float* from = rows.query + place(block + r);
      for (size_t d = 0; d < size; d += 16)
        _mm512_mask_storeu_ps(queries + r * room + d, first16(size - d),
                              _mm512_mul_ps(_mm512_maskz_loadu_ps(first16(size - d), from + d),
                                            _mm512_set1_ps(s.scale * kLog2E)));
      if (Pairs) pair_up(queries + r * room, size, queries + r * room);
    }
    // The first and last key that some row of a tile sees, from `low` on, in whole panels.
    size_t from[kRows], to[kRows], tile_from[kRows / kTile], tile_to[kRows / kTile];
    for (size_t r = 0; r < count; ++r) {
      seen(rows, block + r, &from[r], &to[r]);
      from[r] -= low, to[r] -= low;
      if (r % kTile == 0) tile_from[r / kTile] = from[r] / kPanel * kPanel;
      tile_to[r / kTile] = to[r];
    }
    for (size_t p = 0; p < panels; ++p)
      for (size_t r = 0; r < count; r += kTile) {
        if (p * kPanel < tile_from[r / kTile] || p * kPanel >= tile_to[r / kTile]) continue;
        multiply<Pairs>(std::min(kTile, count - r), queries + r * room, room,
                        packed + p * inner * kPanel, kPanel, inner,
                        scores + r * width + p * kPanel, width, kPanel, false);
      }
    for (size_t r = 0; r < count; r += kTile) {
      const size_t of_tile = std::min(kTile, count - r), start = tile_from[r / kTile];
      float inverse[kTile];
      for (size_t j = 0; j < of_tile; ++j) {
        float* row = scores + (r + j) * width;
        const size_t first = from[r + j], last = to[r + j];
        if (s.softcap > 0) cap_scores(row + first, last - first, s.softcap * kLog2E);
        if (rows.bias) {
          const size_t step = (block + r + j) / s.group, head = (block + r + j) % s.group;
          add_bias(row + first,
                   rows.bias + head * s.bias_head_stride + step * s.bias_width + low + first,
                   last - first);
        }
        const float sum = softmax<Pairs>(row + first, last - first);
        inverse[j] = sum > 0 ? 1 / sum : 0;
        if (Pairs) continue;  // all rows see the same
        std::fill(row + start, row + first, 0.0f);
        std::fill(row + last, row + tile_to[r / kTile], 0.0f);
      }
      const size_t seen_keys = tile_to[r / kTile] - start;
      const float* from_value = value + (Pairs ? start / 2 : start) * value_stride;
      for (size_t d = 0; d < size; d += kPanel)
        multiply<Pairs>(of_tile, scores + r * width + start, width, from_value + d, value_stride,
                        Pairs ? (seen_keys + 1) / 2 : seen_keys, sums + d, room,
                        std::min(kPanel, size - d), false);
      for (size_t j = 0; j < of_tile; ++j) {
        float* to_out = rows.out + place(block + r + j);
        for (size_t d = 0; d < size; d += 16)
          _mm512_mask_storeu_ps(to_out + d, first16(size - d),
                                _mm512_mul_ps(_mm512_maskz_loadu_ps(first16(size - d), sums + j * room + d),
                                              _mm512_set1_ps(inverse[j])));
      }
    }
  }
}

// Parts of the query rows, so that there is work for every thread; later rows see more keys.
size_t slices(size_t rows, size_t others, size_t threads) {
  if (threads <= 1) return 1;
  const size_t wanted = (4 * threads + others - 1) / others;
  return std::max<size_t>(1, std::min(wanted, rows / kRows));
}

template <bool Pairs = false>
void attend(const AttentionShape& s, size_t batch, size_t step, const Parallel& parallel,
            const std::function<bool(size_t, size_t, Rows*, Head*, Head*)>& head_of) {
  if (batch == 0 || step == 0) return;
  const size_t rows = step * s.group, kv_heads = s.heads / s.group;
  const size_t parts = slices(rows, batch * kv_heads, parallel.threads);
  const size_t of_part = (rows + parts - 1) / parts;
  each(parallel, batch * kv_heads * parts, [&](size_t task) {
    const size_t part = parts - 1 - task % parts;  // the longest first
    Rows of{s, nullptr, nullptr, nullptr, 0, 0};
    Head keys, values;
    const size_t begin = part * of_part, end = std::min(rows, begin + of_part);
    if (begin < end && head_of(task / parts / kv_heads, task / parts % kv_heads, &of, &keys, &values))
      attend_rows<Pairs>(of, keys, values, begin, end);
  });
}

}  // namespace

void cached_attention(const AttentionShape& s, size_t batch, size_t step, size_t capacity,
                      const float* query, const float* key, const float* value,
                      const int32_t* lengths, void* keys, void* values, bool half, float* out,
                      const Parallel& parallel) {
  if (step == 1)
    return step_attention(s, batch, capacity, query, key, value, lengths, keys, values, half, out,
                          parallel);
  const size_t kv_heads = s.heads / s.group, size = s.head_size, width = half ? 2 : 4;
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
    append(key + from, kv_heads * size, step, size, at(keys, b, h, past), half);
    append(value + from, kv_heads * size, step, size, at(values, b, h, past), half);
  });
  attend(s, batch, step, parallel, [&](size_t b, size_t h, Rows* rows, Head* k, Head* v) {
    if (!fits(b)) return false;
    const size_t from = b * step * s.heads * size + h * s.group * size;
    rows->query = query + from, rows->out = out + from;
    rows->total = lengths[b], rows->past = lengths[b] - step;
    *k = {at(keys, b, h, 0), size, half};
    *v = {at(values, b, h, 0), size, half};
    return true;
  });
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
  static const bool pairs = __builtin_cpu_supports("avx512bf16");
  if (rounded && pairs && size % 2 == 0) return attend<true>(s, batch, step, parallel, head_of);
  attend(s, batch, step, parallel, head_of);
}

}  // namespace vlmc
