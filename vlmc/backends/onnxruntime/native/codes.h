#pragma once
// What products with quantized weights share: activations as signed bytes.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "activation.h"
#include "kernels.h"
#include "lanes.h"
#include "scratch.h"

namespace vlmc {

constexpr size_t kFewTokens = 8;   // up to here weights are read once and never packed
constexpr size_t kNearRows = 6;    // of a tile, where codes are lifted
constexpr size_t kGatedRows = 48;  // tokens whose products stay near until they are gated
constexpr float kSmallest = 1e-12f;

inline size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The largest magnitude. Bits are compared: so is what is no number, which lies above infinity and
// makes a scale, and with it every result, that is none either.
LANES_INLINE float largest(const float* x, size_t k) {
  const Words magnitude = words(0x7fffffff);
  Words top = words(0);
  for (size_t i = 0; i < k; i += 16)
    top = max(top, bit_and(magnitude, load_words(first16(k - i), x + i)));
  const int32_t bits = reduce_max(top);
  float out;
  std::memcpy(&out, &bits, sizeof(out));
  return out;
}

// Codes of k numbers, rounded to even, zeros up to `room`, each 64 `apart` bytes behind the 64
// before; returns their sum.
LANES_INLINE int32_t codes_of(const float* x, size_t k, size_t room, float inverse, int8_t* out,
                              size_t apart = 64) {
  Floats by = floats(inverse);
  Words sum = words(0);
  for (size_t i = 0; i < room; i += 16) {
    Floats v = i < k ? load(first16(k - i), x + i) : floats(0);
    Words q = to_words(mul(v, by));
    sum = add(sum, q);
    store_bytes(out + i / 64 * apart + i % 64, first16(room - i), q);
  }
  return reduce_add(sum);
}

struct Tokens {
  // [m, room]; tiled: [padded(m, 32) / 16][room / 64][16][64], of rows behind m anything.
  int8_t* codes;
  float* scales;  // [m]
  int32_t* sums;  // [m], of the codes
  size_t room;
  bool tiled;
  // Of lifted codes (near_spans.h): what is known of each tile, [tiles, lifted_size].
  const uint16_t* lifted = nullptr;
  size_t lifted_size = 0;

  // Those from number `i` on, which begins a tile where codes are lifted.
  Tokens from(size_t i) const {
    return {codes + i * room, scales + i, sums + i, room, tiled,
            lifted + i / kNearRows * lifted_size, lifted_size};
  }
  int8_t* row(size_t i) const {
    return tiled ? codes + i / 16 * 16 * room + i % 16 * 64 : codes + i * room;
  }
};

// Room for m rows of k codes, kept by the thread.
inline Tokens token_room(size_t m, size_t k, bool tiled) {
  static thread_local Scratch<int8_t> codes;
  static thread_local Scratch<float> scales;
  static thread_local Scratch<int32_t> sums;
  Tokens t{nullptr, scales.at_least(m), sums.at_least(m), padded(k, 64), tiled};
  t.codes = codes.at_least(padded(m, 32) * t.room);
  return t;
}

// row(i) gives k numbers, for as long as its thread asks for no other row.
template <typename Row>
LANES Tokens quantize_rows(size_t m, size_t k, bool tiled, const Parallel& parallel, Row&& row) {
  const Tokens t = token_room(m, k, tiled);
  constexpr size_t kRows = 16;
  each(parallel, (m + kRows - 1) / kRows, [&](size_t task) LANES {
    for (size_t i = task * kRows; i < std::min(m, (task + 1) * kRows); ++i) {
      const float* x = row(i);
      const float scale = (largest(x, k) + kSmallest) * (1 / 127.0f);
      t.scales[i] = scale;
      t.sums[i] = codes_of(x, k, t.room, 1 / scale, t.row(i), tiled ? 1024 : 64);
    }
  });
  return t;
}

inline Tokens quantize_tokens(const float* x, size_t m, size_t k, bool tiled,
                              const Parallel& parallel) {
  return quantize_rows(m, k, tiled, parallel, [&](size_t i) { return x + i * k; });
}

}  // namespace vlmc
