// Attention of one new token a row: all that counts is that keys and values are read once, from front
// to back. A head's are cut into parts for several threads, whose answers are then weighed.
#include "attention_step.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "ahead.h"
#include "float_tile.h"
#include "scratch.h"
#include "softmax.h"
#include "team.h"

namespace vlmc {
namespace {

constexpr size_t kRows = kAbreast;  // queries that are scored together
constexpr size_t kKeys = 16;        // whose scores are made together
constexpr size_t kLeastKeys = 128;  // of a part, where a head has several
constexpr size_t kLeastHeads = 8;   // that are worth another thread's while once all parts are there

// Lane 4 i + j: the sum of lanes 4 i .. 4 i + 3 of v[j].
LANES_INLINE Floats sums_of_fours(const Floats* v) {
  const Floats a = add(unpack_low(v[0], v[1]), unpack_high(v[0], v[1]));
  const Floats b = add(unpack_low(v[2], v[3]), unpack_high(v[2], v[3]));
  return add(shuffle<0x44>(a, b), shuffle<0xee>(a, b));
}

// Lane 4 i + j: the sum of lanes j, 4 + j, 8 + j and 12 + j of v[i].
LANES_INLINE Floats sums_over_fours(const Floats* v) {
  const Floats a = add(shuffle_fours<0x44>(v[0], v[1]), shuffle_fours<0xee>(v[0], v[1]));
  const Floats b = add(shuffle_fours<0x44>(v[2], v[3]), shuffle_fours<0xee>(v[2], v[3]));
  return add(shuffle_fours<0x88>(a, b), shuffle_fours<0xdd>(a, b));
}

LANES void widen(const uint16_t* from, size_t count, const Course& course, float* to) {
  for (size_t i = 0; i < count; i += 16) {
    if (i % 128 == 0) course.ask_four(from + i);
    store(to + i, first16(count - i), load(from, true, i, first16(count - i)));
  }
}

// scores[R][width] of kKeys keys, four at a time.
template <size_t R, bool Ask>
LANES void score_block(const float* queries, size_t room, const float* keys, size_t size,
                       const Course& course, float* scores, size_t width) {
  Floats fours[R][4];
#pragma GCC unroll 4
  for (size_t t = 0; t < 4; ++t, keys += 4 * size) {
    Floats acc[R][4];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) acc[r][j] = floats(0);
    const auto add = [&](size_t d, Mask there) LANES_LAMBDA {
      if (Ask) course.ask_four(keys + 4 * d);  // as much is read, of all four
      Floats k[4];
#pragma GCC unroll 4
      for (size_t j = 0; j < 4; ++j) k[j] = load(there, keys + j * size + d);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        const Floats q = load(queries + r * room + d);
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; ++j) acc[r][j] = fmadd(q, k[j], acc[r][j]);
      }
    };
    for (size_t d = 0; d + 16 <= size; d += 16) add(d, 0xffff);
    if (size % 16) add(size / 16 * 16, first16(size % 16));
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) fours[r][t] = sums_of_fours(acc[r]);
  }
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) store(scores + r * width, sums_over_fours(fours[r]));
}

using ScoreBlock = void (*)(const float*, size_t, const float*, size_t, const Course&, float*,
                            size_t);
template <bool Ask>
constexpr ScoreBlock kScored[4] = {score_block<abreast(1), Ask>, score_block<abreast(2), Ask>,
                                   score_block<abreast(3), Ask>, score_block<abreast(4), Ask>};

// scores[rows][width] of `count` keys, which lie behind each other; up to 15 more are written.
LANES void score_keys(const float* queries, size_t rows, size_t room, const void* keys, bool half,
                      size_t count, size_t size, const Course& course, float* scores,
                      size_t width) {
  static thread_local Scratch<float> plain_room;
  for (size_t t = 0; t < count; t += kKeys) {
    const size_t there = std::min(kKeys, count - t);
    const float* k = static_cast<const float*>(keys) + t * size;
    const bool copied = half || there < kKeys;
    if (copied) {
      float* plain = plain_room.at_least(kKeys * size);
      if (half)
        widen(static_cast<const uint16_t*>(keys) + t * size, there * size, course, plain);
      else
        std::memcpy(plain, k, there * size * sizeof(float));
      std::fill(plain + there * size, plain + kKeys * size, 0.0f);
      k = plain;
    }
    for (size_t r = 0; r < rows; r += kRows) {
      const auto& of = r || copied ? kScored<false> : kScored<true>;
      of[std::min(kRows, rows - r) - 1](queries + r * room, room, k, size, course,
                                        scores + r * width + t, width);
    }
  }
}

// tile, of values where they lie.
template <size_t R, size_t V>
LANES void asking_tile(const float* a, size_t lda, const float* b, size_t ldb, size_t inner,
                       float* c, size_t ldc, size_t count, bool onto, const Course& course) {
  tile_beside<R, V, false>(a, lda, b, ldb, inner, c, ldc, count, onto,
                           [&](const float* row) { course.ask_four(row); });
}
using AskingTile = void (*)(const float*, size_t, const float*, size_t, size_t, float*, size_t,
                            size_t, bool, const Course&);
template <size_t R>
constexpr AskingTile kAskingOf[4] = {asking_tile<R, abreast(1)>, asking_tile<R, abreast(2)>,
                                     asking_tile<R, abreast(3)>, asking_tile<R, abreast(4)>};
constexpr const AskingTile* kAsking[kTile] = {kAskingOf<1>, kAskingOf<2>, kAskingOf<3>,
                                              kAskingOf<4>, kAskingOf<5>, kAskingOf<6>};

// sums[rows][room] of `count` values by their weights.
LANES void add_values(const float* weights, size_t rows, size_t width, const void* values,
                      bool half, size_t count, size_t size, const Course& course, float* sums,
                      size_t room) {
  static thread_local Scratch<float> plain_room;
  constexpr size_t kValues = 16;  // that stay near while all rows take them
  const size_t tiles = (rows + kTile - 1) / kTile, of_tile = (rows + tiles - 1) / tiles;
  for (size_t t = 0; t < count; t += kValues) {
    const size_t there = std::min(kValues, count - t);
    const float* v = static_cast<const float*>(values) + t * size;
    if (half) {
      float* plain = plain_room.at_least(kValues * size);
      widen(static_cast<const uint16_t*>(values) + t * size, there * size, course, plain);
      v = plain;
    }
    for (size_t r = 0; r < rows; r += of_tile) {
      const size_t some = std::min(of_tile, rows - r);
      for (size_t d = 0; d < size; d += kWide) {
        const size_t wide = std::min(kWide, size - d);
        const float* by = weights + r * width + t;
        float* to = sums + r * room + d;
        if (r || half || d % kPanel)
          multiply(some, by, width, v + d, size, there, to, room, wide, t > 0);
        else
          kAsking[some - 1][(wide + 15) / 16 - 1](by, width, v + d, size, there, to, room, wide,
                                                  t > 0, course);
      }
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

// first: nothing of it was asked for. then: what is read behind it.
LANES void attend_part(const AttentionShape& s, const float* query, const void* keys,
                       const void* values, bool half, size_t count, bool first, const void* then,
                       const Part& part) {
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
      store(queries + r * room + d,
            mul(load(first16(size - d), query + r * size + d), floats(s.scale * kLog2E)));
  const size_t bytes = count * size * (half ? 2 : 4);
  const Course course(static_cast<const char*>(keys) + bytes, values);
  if (first) course.start(keys);
  score_keys(queries, s.group, room, keys, half, count, size, course, scores, width);
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
  add_values(scores, s.group, width, values, half, count, size,
             {static_cast<const char*>(values) + bytes, then}, part.of, room + 16);
}

// The answer of each query row of a head, from its parts.
LANES void weigh(const AttentionShape& s, const Part* parts, size_t count, float* out) {
  for (size_t r = 0; r < s.group; ++r) {
    float top = -INFINITY, sum = 0;
    for (size_t p = 0; p < count; ++p) top = std::max(top, parts[p].top(r));
    for (size_t p = 0; p < count; ++p) {
      float& weight = parts[p].top(r);  // no more needed
      weight = top == -INFINITY ? 0 : std::exp2(weight - top);
      sum += weight * parts[p].sum(r);
    }
    const Floats inverse = floats(sum > 0 ? 1 / sum : 0);
    for (size_t d = 0; d < s.head_size; d += 16) {
      Floats all = floats(0);
      for (size_t p = 0; p < count; ++p)
        all = fmadd(floats(parts[p].top(r)), load(parts[p].sums(r) + d), all);
      store(out + r * s.head_size + d, first16(s.head_size - d), mul(all, inverse));
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
  size_t parts = threads > 1 ? std::min(most, (2 * threads + heads - 1) / heads) : 1;
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
  // The keys of a part, from `begin` on; none of a slot that holds nothing.
  const auto keys_of = [&](size_t i) {
    const size_t head = i / parts, last = fits(head) ? lengths[head / kv_heads] : 0;
    const size_t start = s.window && last > s.window ? last - s.window : 0, seen = last - start;
    const size_t begin = start + seen * (i % parts) / parts;
    return std::array<size_t, 3>{begin, start + seen * (i % parts + 1) / parts, last};
  };
  together<2>(parallel, [&, part = all.data()](Member member) {
    size_t asked = heads * parts;  // the part of which something was asked for
    const char* const after = member.front_after();
    member.share(heads * parts, 1, [&](size_t from, size_t to) {
      const size_t run = member.end_of_run(from, to);
      for (size_t i = from; i < to; ++i) {
        const size_t head = i / parts;
        const auto [begin, end, last] = keys_of(i);
        if (!last) continue;
        if (end == last) {
          append(key + head * size, size, 1, size, at(keys, head, last - 1), half);
          append(value + head * size, size, 1, size, at(values, head, last - 1), half);
        }
        const void* then = i + 1 < run ? at(keys, (i + 1) / parts, keys_of(i + 1)[0]) : after;
        attend_part(s, query + head * s.group * size, at(keys, head, begin), at(values, head, begin),
                    half, end - begin, i != asked, then, part[i]);
        asked = i + 1;
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
