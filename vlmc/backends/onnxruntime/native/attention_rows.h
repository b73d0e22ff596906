#pragma once
// Query rows of one key head: where they lie, what they see, and what is done to their scores.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstddef>

#include "attention_pack.h"
#include "kernels.h"
#include "lanes.h"
#include "rotary.h"
#include "softmax.h"

namespace vlmc {

// The query rows of one key head in one batch row: row r is step r / group, head r % group.
struct Rows {
  const AttentionShape& shape;
  const float* query;  // of step 0, the group's first head
  float* out;          // likewise
  const float* bias;   // of step 0, that head, or null
  Turn by;             // of step 0
  size_t past, total;

  size_t place(size_t r) const {
    const size_t size = shape.head_size;
    return r / shape.group * shape.heads * size + r % shape.group * size;
  }
};

// What row r may see, from key `low` on.
inline Span seen(const Rows& rows, size_t r, size_t low = 0) {
  const AttentionShape& s = rows.shape;
  const size_t to = s.causal ? rows.past + r / s.group + 1 : rows.total;
  const size_t from = s.window && to > s.window ? to - s.window : 0;
  return {static_cast<uint32_t>(from - low), static_cast<uint32_t>(to - low)};
}

// Asks for the memory of the answer of row r, and of the query of row `next`, before `end`.
LANES inline void ask_for(const Rows& rows, size_t r, size_t next, size_t end) {
  const size_t bytes = rows.shape.head_size * sizeof(float);
  ask_to_write(rows.out + rows.place(r), bytes);
  if (next < end) ask(rows.query + rows.place(next), bytes);
}

// Queries of rows first .. first + count - 1, up to Most, turned in turned[Most][size], as products
// read them, `room` apart.
template <bool Pairs, size_t Most>
LANES void take_queries(const Rows& rows, size_t first, size_t count, float* turned, float* queries,
                        size_t room) {
  const size_t size = rows.shape.head_size;
  const float* from[Most];
  for (size_t r = 0; r < count; ++r) {
    from[r] = rows.query + rows.place(first + r);
    if (!rows.by.half) continue;
    const size_t angle = (first + r) / rows.shape.group * rows.by.half;
    float* to = turned + r * size;
    turn(from[r], 1, size, rows.by.half, rows.by.cos + angle, rows.by.sin + angle, to);
    from[r] = to;
  }
  pack_queries<Pairs>(from, count, rows.shape.scale * kLog2E, size, queries, room);
}

// To scores, which are in base 2.
LANES inline void add_bias(float* row, const float* bias, size_t count) {
  for (size_t i = 0; i < count; i += 16) {
    const Mask there = first16(count - i);
    const Floats add = load(there, bias + i);
    const Floats score = load(there, row + i);
    const Floats sum = fmadd(add, floats(kLog2E), score);
    // What is hidden by the lowest number is not hidden from who sees nothing else.
    const Mask finite = compare<_CMP_NEQ_UQ>(add, floats(-INFINITY));
    const Floats lowest = floats(-FLT_MAX);
    store(row + i, there, max(sum, finite, lowest, sum));
  }
}

inline bool changed(const Rows& rows) { return rows.shape.softcap > 0 || rows.bias; }

// What is seen of the scores of row r, whose first is that of key `low`, where `changed`.
inline void change(const Rows& rows, size_t r, size_t low, Span seen, float* row) {
  const AttentionShape& s = rows.shape;
  if (seen.from >= seen.to) return;
  const size_t first = seen.from, count = seen.to - first;
  if (s.softcap > 0) cap_scores(row + first, count, s.softcap * kLog2E);
  if (!rows.bias) return;
  const size_t step = r / s.group, head = r % s.group;
  const size_t at = head * s.bias_head_stride + step * s.bias_width + low + first;
  add_bias(row + first, rows.bias + at, count);
}

// The answer of row r: sums[size] of its values, divided by the sum of their weights; zeros where
// that is 0.
LANES inline void answer(const Rows& rows, size_t r, const float* sums, float weights) {
  const size_t size = rows.shape.head_size;
  const Floats inverse = floats(weights > 0 ? 1 / weights : 0);
  float* out = rows.out + rows.place(r);
  for (size_t d = 0; d < size; d += 16)
    store(out + d, first16(size - d), mul(load(sums + d), inverse));
}

}  // namespace vlmc
