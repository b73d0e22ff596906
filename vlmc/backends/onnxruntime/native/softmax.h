#pragma once
// From scores of a query row to weights of values.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "bfloat16.h"
#include "lanes.h"

namespace vlmc {

// Scores are in base 2: what makes them, multiplies by this, and no exponential has to.
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0, 0 far below. To one unit in the last place; of what is Rounded to bfloat16 next,
// to 3e-6 of itself.
template <bool Rounded>
LANES_INLINE Floats power(Floats x) {
  const Floats r = fraction(x);
  // Of least relative error between 0 and 1, 1 at 0.
  Floats p = floats(Rounded ? 1.34266857e-2f : 2.16129163e-4f);
  if (!Rounded) p = fmadd(p, r, floats(1.24678458e-3f));
  if (!Rounded) p = fmadd(p, r, floats(9.67545155e-3f));
  p = fmadd(p, r, floats(Rounded ? 5.22424728e-2f : 5.54852821e-2f));
  p = fmadd(p, r, floats(Rounded ? 2.41280213e-1f : 2.40229309e-1f));
  p = fmadd(p, r, floats(Rounded ? 6.93044841e-1f : 6.93147063e-1f));
  p = fmadd(p, r, floats(1.0f));
  return scalef(p, x);  // by 2 to the power of what is whole in x
}

// The keys that a query row sees.
struct Span {
  uint32_t from, to;
};

// The keys start .. stop that some of several rows see; all of them see whole .. part. All but
// `stop` are multiples of 16.
struct Range {
  size_t start, whole, part, stop;
};

// Which of 16 keys are seen.
LANES_INLINE Mask seen16(Span seen, Words keys) {
  const Mask before_end = less(keys, words(seen.to));
  return at_least(before_end, keys, words(seen.from));
}

// Keys at .. at + 15.
LANES_INLINE Words keys16(size_t at) { return add(words(at), lane_numbers()); }

// tops[R]: the larger of what they are and of scores of keys from .. to, by lanes. Of Hidden, some
// row does not see some key.
template <size_t R, bool Hidden>
LANES_INLINE void raise(const float* scores, size_t width, const Span* seen, size_t from, size_t to,
                        Floats (&tops)[R]) {
  for (size_t t = from; t < to; t += 16)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const Floats x = load(scores + r * width + t);
      tops[r] = Hidden ? max(tops[r], seen16(seen[r], keys16(t)), tops[r], x) : max(tops[r], x);
    }
}

// 2^(score - top) in place; of Hidden, 0 where a key is not seen.
template <size_t R, bool Hidden, bool Pairs>
LANES_INLINE void weigh(float* scores, size_t width, const Span* seen, size_t from, size_t to,
                        const Floats (&tops)[R], Floats (&sums)[R]) {
  for (size_t t = from; t < to; t += 16)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      float* row = scores + r * width;
      Floats e = power<Pairs>(sub(load(row + t), tops[r]));
      if (Hidden) e = kept(seen16(seen[r], keys16(t)), e);
      sums[r] = add(sums[r], e);
      if constexpr (Pairs)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + t / 2), to_bf16(e));
      else
        store(row + t, e);
    }
}

// 2^(score - the row's largest) of scores[R][width] in place, of Pairs as bfloat16 from the row's
// front on; 0 for what is hidden, and for up to 15 numbers behind the last. tops[R]: the largest;
// sums[R]: of what comes out. known[R][16]: the largest of keys whole .. part, by lanes, or null.
// All rows at once: what one waits for, others do.
template <size_t R, bool Pairs>
LANES void softmax(float* scores, size_t width, const Span* seen, Range keys, const float* known,
                   float* tops, float* sums) {
  Floats top[R], sum[R];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) top[r] = known ? load(known + r * 16) : floats(-INFINITY);
  raise<R, true>(scores, width, seen, keys.start, keys.whole, top);
  if (!known) raise<R, false>(scores, width, seen, keys.whole, keys.part, top);
  raise<R, true>(scores, width, seen, keys.part, keys.stop, top);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) {
    tops[r] = reduce_max(top[r]);
    // Nothing may be seen: the sum stays 0 and the row's answer is zeros.
    top[r] = floats(tops[r] == -INFINITY ? 0.0f : tops[r]);
    sum[r] = floats(0);
  }
  weigh<R, true, Pairs>(scores, width, seen, keys.start, keys.whole, top, sum);
  weigh<R, false, Pairs>(scores, width, seen, keys.whole, keys.part, top, sum);
  weigh<R, true, Pairs>(scores, width, seen, keys.part, keys.stop, top, sum);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r) sums[r] = reduce_add(sum[r]);
}

using Softmax = void (*)(float*, size_t, const Span*, Range, const float*, float*, float*);
template <bool Pairs>
constexpr Softmax kSoftmax[] = {softmax<1, Pairs>, softmax<2, Pairs>, softmax<3, Pairs>,
                                softmax<4, Pairs>, softmax<5, Pairs>, softmax<6, Pairs>};

LANES inline void cap_scores(float* row, size_t count, float cap) {
  for (size_t i = 0; i < count; ++i) row[i] = cap * std::tanh(row[i] / cap);
}

}  // namespace vlmc
