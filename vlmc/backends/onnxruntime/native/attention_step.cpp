// Attention of one new token a row: all that counts is that keys and values are read once, from front
// to back. A head's are cut into parts for several threads, whose answers are then weighed.
#include "attention_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "float_tile.h"
#include "scratch.h"
#include "softmax.h"
#include "team.h"

namespace vlmc {
namespace {

constexpr size_t kKeys = 16;        // whose scores are made together
constexpr size_t kLeastKeys = 128;  // of a part, where a head has several
constexpr size_t kLeastHeads = 8;   // that are worth another thread's while once all parts are there
constexpr size_t kAhead = 4096;     // bytes that are asked for before they are read

// Lane j: the sum of v[j].
AVX512_INLINE __m512 sums_of(const __m512* v) {
  __m512 pairs[8], fours[4], halves[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]),
                             _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_add_ps(_mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xee));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88),
                       _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}

AVX512 void widen(const void* from, size_t count, float* to) {
  for (size_t i = 0; i < count; i += 16)
    _mm512_mask_storeu_ps(to + i, first16(count - i), load(from, true, i, first16(count - i)));
}

// What is asked for before it is read, some lines at a time: many at once hold up what comes next.
struct Ahead {
  const char* at;
  size_t lines;

  void ask() {
    for (size_t i = 0; i < lines; ++i, at += 64) _mm_prefetch(at, _MM_HINT_T0);
  }
};

// scores[R][width] of kKeys keys.
template <size_t R>
AVX512_INLINE void score_block(const float* queries, size_t room, const float* keys, size_t size,
                             float* scores, size_t width, Ahead& ahead) {
  constexpr size_t K = 16 / R;
  for (size_t t = 0; t < kKeys; t += K, keys += K * size) {
    __m512 acc[R * K];
#pragma GCC unroll 16
    for (size_t i = 0; i < R * K; ++i) acc[i] = _mm512_setzero_ps();
    for (size_t d = 0; d < size; d += 16) {
      ahead.ask();
      const __mmask16 there = first16(size - d);
      __m512 q[R];
#pragma GCC unroll 2
      for (size_t r = 0; r < R; ++r) q[r] = _mm512_loadu_ps(queries + r * room + d);
#pragma GCC unroll 16
      for (size_t j = 0; j < K; ++j) {
        const __m512 k = _mm512_maskz_loadu_ps(there, keys + j * size + d);
#pragma GCC unroll 2
        for (size_t r = 0; r < R; ++r) acc[r * K + j] = _mm512_fmadd_ps(q[r], k, acc[r * K + j]);
      }
    }
    const __m512 sums = sums_of(acc);
    if (R == 1) _mm512_storeu_ps(scores, sums);
    if (R == 2) {
      _mm256_storeu_ps(scores + t, _mm512_castps512_ps256(sums));
      _mm256_storeu_ps(scores + width + t, _mm512_extractf32x8_ps(sums, 1));
    }
  }
}

// scores[rows][width] of `count` keys, which lie behind each other; up to 15 more are written. Behind
// the keys, the first of their values are asked for.
AVX512 void score_keys(const float* queries, size_t rows, size_t room, const void* keys,
                       const void* values, bool half, size_t count, size_t size, float* scores,
                       size_t width) {
  static thread_local Scratch<float> plain_room;
  const size_t bytes = size * (half ? 2 : 4), all = count * bytes;
  const size_t steps = rows * ((size + 15) / 16);  // in which scores of kKeys keys are made
  const size_t lines = (kKeys * bytes / 64 + steps - 1) / steps;
  Ahead{static_cast<const char*>(keys), std::min(kAhead, all) / 64}.ask();
  for (size_t t = 0; t < count; t += kKeys) {
    const size_t there = std::min(kKeys, count - t), next = t * bytes + kAhead;
    const char* from = static_cast<const char*>(keys) + t * bytes;
    Ahead ahead{next < all ? static_cast<const char*>(keys) + next
                           : static_cast<const char*>(values) + (next - all),
                lines};
    const float* k = reinterpret_cast<const float*>(from);
    if (half || there < kKeys) {
      float* plain = plain_room.at_least(kKeys * size);
      if (half)
        widen(from, there * size, plain);
      else
        std::memcpy(plain, from, there * bytes);
      std::fill(plain + there * size, plain + kKeys * size, 0.0f);
      k = plain;
    }
    size_t r = 0;
    for (; r + 2 <= rows; r += 2)
      score_block<2>(queries + r * room, room, k, size, scores + r * width + t, width, ahead);
    if (r < rows)
      score_block<1>(queries + r * room, room, k, size, scores + r * width + t, width, ahead);
  }
}

// sums[rows][room] of `count` values by their weights.
AVX512 void add_values(const float* weights, size_t rows, size_t width, const void* values,
                       bool half, size_t count, size_t size, float* sums, size_t room) {
  static thread_local Scratch<float> plain_room;
  constexpr size_t kValues = 16;  // that stay near while all rows take them
  const size_t bytes = size * (half ? 2 : 4), tiles = (rows + kTile - 1) / kTile;
  const size_t of_tile = (rows + tiles - 1) / tiles;
  for (size_t t = 0; t < count; t += kValues) {
    const size_t there = std::min(kValues, count - t);
    const float* v = static_cast<const float*>(values) + t * size;
    if (half) {
      float* plain = plain_room.at_least(kValues * size);
      widen(static_cast<const uint16_t*>(values) + t * size, there * size, plain);
      v = plain;
    }
    Ahead ahead{static_cast<const char*>(values) + (t + kValues) * bytes,
                (kValues * bytes / 64 + tiles - 1) / tiles};
    for (size_t r = 0; r < rows; r += of_tile) {
      ahead.ask();
      for (size_t d = 0; d < size; d += kPanel)
        multiply(std::min(of_tile, rows - r), weights + r * width + t, width, v + d, size, there,
                 sums + r * room + d, room, std::min(kPanel, size - d), t > 0);
    }
  }
}

// What a part of a head's keys gives for each of its query rows: the largest score, the sum of
// weights, and weighted values [room].
struct Part {
  float* of;
  size_t room;
  float* sums(size_t row) const { return of + row * (room + 16); }
  float& top(size_t row) const { return sums(row)[room]; }
  float& sum(size_t row) const { return sums(row)[room + 1]; }
};

AVX512 void attend_part(const AttentionShape& s, const float* query, const void* keys,
                        const void* values, bool half, size_t count, const Part& part) {
  static thread_local Scratch<float> query_room, score_room;
  const size_t size = s.head_size, room = part.room, width = (count + 15) / 16 * 16;
  if (!count) {  // of a row with fewer keys than parts
    std::fill(part.of, part.of + s.group * (room + 16), 0.0f);
    for (size_t r = 0; r < s.group; ++r) part.top(r) = -INFINITY;
    return;
  }
  float* queries = query_room.at_least(s.group * room);
  float* scores = score_room.at_least(s.group * width);
  for (size_t r = 0; r < s.group; ++r)
    for (size_t d = 0; d < size; d += 16)
      _mm512_storeu_ps(queries + r * room + d,
                       _mm512_mul_ps(_mm512_maskz_loadu_ps(first16(size - d), query + r * size + d),
                                     _mm512_set1_ps(s.scale * kLog2E)));
  score_keys(queries, s.group, room, keys, values, half, count, size, scores, width);
  for (size_t r = 0; s.softcap > 0 && r < s.group; ++r)
    cap_scores(scores + r * width, count, s.softcap * kLog2E);
  Span all[kTile];
  std::fill(all, all + kTile, Span{0, static_cast<uint32_t>(count)});
  for (size_t r = 0; r < s.group; r += kTile) {
    const size_t rows = std::min(kTile, s.group - r);
    float tops[kTile], sums[kTile];
    kSoftmax<false>[rows - 1](scores + r * width, width, all, {0, 0, count / 16 * 16, count}, nullptr,
                              tops, sums);
    for (size_t j = 0; j < rows; ++j) part.top(r + j) = tops[j], part.sum(r + j) = sums[j];
  }
  add_values(scores, s.group, width, values, half, count, size, part.of, room + 16);
}

// The answer of each query row of a head, from its parts.
AVX512 void weigh(const AttentionShape& s, const Part* parts, size_t count, float* out) {
  for (size_t r = 0; r < s.group; ++r) {
    float top = -INFINITY, sum = 0;
    for (size_t p = 0; p < count; ++p) top = std::max(top, parts[p].top(r));
    for (size_t p = 0; p < count; ++p) {
      float& weight = parts[p].top(r);  // no more needed
      weight = top == -INFINITY ? 0 : std::exp2(weight - top);
      sum += weight * parts[p].sum(r);
    }
    const __m512 inverse = _mm512_set1_ps(sum > 0 ? 1 / sum : 0);
    for (size_t d = 0; d < s.head_size; d += 16) {
      __m512 all = _mm512_setzero_ps();
      for (size_t p = 0; p < count; ++p)
        all = _mm512_fmadd_ps(_mm512_set1_ps(parts[p].top(r)),
                              _mm512_loadu_ps(parts[p].sums(r) + d), all);
      _mm512_mask_storeu_ps(out + r * s.head_size + d, first16(s.head_size - d),
                            _mm512_mul_ps(all, inverse));
    }
  }
}

}  // namespace

void step_attention(const AttentionShape& s, size_t batch, size_t capacity, const float* query,
                    const float* key, const float* value, const int32_t* lengths, void* keys,
                    void* values, bool half, float* out, const Parallel& parallel) {
  if (batch == 0) return;
  static thread_local Scratch<float> result_room;
  static thread_local std::vector<Part> all;
  const size_t kv_heads = s.heads / s.group, size = s.head_size, heads = batch * kv_heads;
  const size_t room = (size + 15) / 16 * 16, of_part = s.group * (room + 16);
  size_t longest = 0;
  for (size_t b = 0; b < batch; ++b) longest = std::max<size_t>(longest, std::max(lengths[b], 0));
  if (s.window) longest = std::min(longest, s.window);
  const size_t threads = team_size(parallel), most = std::max<size_t>(1, longest / kLeastKeys);
  size_t parts = threads > 1 ? std::min(most, (4 * threads + heads - 1) / heads) : 1;
  while (heads * parts % threads && parts < most) ++parts;  // as many for each thread
  float* results = result_room.at_least(heads * parts * of_part);
  all.resize(heads * parts);
  for (size_t i = 0; i < all.size(); ++i) all[i] = {results + i * of_part, room};
  const auto fits = [&](size_t head) {
    const int32_t length = lengths[head / kv_heads];
    return length >= 1 && (size_t)length <= capacity;
  };
  const auto at = [&](void* cache, size_t head, size_t t) {
    return static_cast<char*>(cache) + (head * capacity + t) * size * (half ? 2 : 4);
  };
  together<2>(parallel, [&, part = all.data()](Member member) {
    member.share(heads * parts, 1, [&](size_t from, size_t to) {
      for (size_t i = from; i < to; ++i) {
        const size_t head = i / parts;
        if (!fits(head)) continue;
        const size_t last = lengths[head / kv_heads];
        const size_t first = s.window && last > s.window ? last - s.window : 0, seen = last - first;
        const size_t begin = first + seen * (i % parts) / parts;
        const size_t end = first + seen * (i % parts + 1) / parts;
        if (end == last) {
          append(key + head * size, size, 1, size, at(keys, head, last - 1), half);
          append(value + head * size, size, 1, size, at(values, head, last - 1), half);
        }
        attend_part(s, query + head * s.group * size, at(keys, head, begin), at(values, head, begin),
                    half, end - begin, part[i]);
      }
    });
    member.join();
    member.share(heads, kLeastHeads, [&](size_t from, size_t to) {
      for (size_t head = from; head < to; ++head) {
        float* answer = out + head * s.group * size;
        if (fits(head))
          weigh(s, part + head * parts, parts, answer);
        else  // a slot that holds nothing
          std::memset(answer, 0, s.group * size * sizeof(float));
      }
    });
  });
}

}  // namespace vlmc
