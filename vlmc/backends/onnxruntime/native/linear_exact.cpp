// Products of float32 with weights that are bfloat16 already, as a checkpoint stores them, in tiles.
//
// A float32 is the sum of three bfloat16, and products of two bfloat16 are exact in float32: what is
// rounded are the sums alone, as where everything is float32.
#include <algorithm>
#include <cstring>

#include "amx.h"
#include "float_tile.h"
#include "kernels.h"
#include "scratch.h"

#ifdef VLMC_AVX2
bool vlmc::linear_exact(const float*, size_t, size_t, const uint16_t*, size_t, float*, size_t) {
  return false;
}
#else
namespace vlmc {
namespace {

constexpr size_t kParts = 3, kStep = 32;             // of a number; numbers of a row of a tile
constexpr size_t kSteps = 16, kDepth = kSteps * kStep;  // whose sums are added as one
constexpr size_t kTokens = 416;                      // whose parts stay near: 1.2 MiB
constexpr size_t kAhead = kParts;                    // tiles that are asked for
constexpr size_t kWords = kTileBytes / 4, kTileWords = kWholeTile / 4;

// The first bfloat16 of 32 numbers, cut off; what is left of them stays. Nothing is left of inf and nan.
LANES_INLINE __m512 cut(__m512* low, __m512* high) {
  const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
  __m512i first[2];
  __m512* const of[2] = {low, high};
  for (int i = 0; i < 2; ++i) {
    first[i] = _mm512_and_si512(_mm512_castps_si512(*of[i]), upper);
    const __m512 value = _mm512_castsi512_ps(first[i]);
    const __mmask16 odd = _mm512_fpclass_ps_mask(value, 0x99);
    *of[i] = _mm512_mask_sub_ps(_mm512_setzero_ps(), (__mmask16)~odd, *of[i], value);
  }
  const __m512i odd_words = _mm512_set_epi16(
      63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15,
      13, 11, 9, 7, 5, 3, 1);
  return _mm512_castsi512_ps(_mm512_permutex2var_epi16(first[0], odd_words, first[1]));
}

// 16 tokens' numbers as tiles [steps][parts][16 pairs][16 tokens][2]; zeros where there are fewer.
LANES void pack(const float* x, size_t tokens, size_t k, size_t steps, float* out) {
  for (size_t s = 0; s < steps; ++s, x += kStep) {
    __m512 parts[kParts][16];
    for (size_t t = 0; t < 16; ++t) {
      __m512 low = _mm512_setzero_ps(), high = low;
      if (t < tokens) {
        low = _mm512_loadu_ps(x + t * k);
        high = _mm512_loadu_ps(x + t * k + 16);
      }
      for (size_t part = 0; part < kParts; ++part) parts[part][t] = cut(&low, &high);
    }
    for (size_t part = 0; part < kParts; ++part, out += kTileWords) {
      transpose(parts[part]);
      for (size_t j = 0; j < 16; ++j) _mm512_storeu_ps(out + j * kWords, parts[part][j]);
    }
  }
}

// Up to 32 rows as tiles [steps][2][16 rows][32 numbers]; zeros where there are fewer.
LANES void pack_rows(const uint16_t* w, size_t rows, size_t k, size_t steps, float* out) {
  for (size_t r = 0; r < 2 * kTileRows; ++r, w += k)
    for (size_t s = 0; s < steps; ++s)
      _mm512_store_si512(out + (2 * s) * kTileWords + r * kWords,
                         r < rows ? _mm512_loadu_si512(w + s * kStep) : _mm512_setzero_si512());
}

// sums[32][32] (+)= w[32 rows, k apart][steps] times two tiles of tokens.
inline void multiply(const float* w, const float* x, size_t tile, size_t steps,
                     float* sums, size_t pitch, bool onto) {
  float* const lower = sums + kTileRows * pitch;
  if (onto) {
    VLMC_TILE_LOAD(0, sums, pitch * 4);
    VLMC_TILE_LOAD(1, sums + kWords, pitch * 4);
    VLMC_TILE_LOAD(2, lower, pitch * 4);
    VLMC_TILE_LOAD(3, lower + kWords, pitch * 4);
    for (const float* next : {sums + 2 * kTileRows, lower + 2 * kTileRows}) {  // the next tokens'
      ask_tile(next, pitch * 4);
      ask_tile(next + kWords, pitch * 4);
    }
  } else {
    VLMC_TILE_ZERO(0);
    VLMC_TILE_ZERO(1);
    VLMC_TILE_ZERO(2);
    VLMC_TILE_ZERO(3);
  }
  for (; steps; --steps, w += 2 * kTileWords) {
    VLMC_TILE_LOAD(4, w, kTileBytes);
    VLMC_TILE_LOAD(5, w + kTileWords, kTileBytes);
    for (size_t part = 0; part < kParts; ++part, x += kTileWords) {
      ask_tile(x + kAhead * kTileWords, kTileBytes);
      VLMC_TILE_LOAD(6, x, kTileBytes);
      VLMC_TILE_LOAD(7, x + tile, kTileBytes);
      VLMC_TILE_BF16(0, 4, 6);
      VLMC_TILE_BF16(1, 4, 7);
      ask_tile(x + tile + kAhead * kTileWords, kTileBytes);
      VLMC_TILE_BF16(2, 5, 6);
      VLMC_TILE_BF16(3, 5, 7);
    }
  }
  VLMC_TILE_STORE(0, sums, pitch * 4);
  VLMC_TILE_STORE(1, sums + kWords, pitch * 4);
  VLMC_TILE_STORE(2, lower, pitch * 4);
  VLMC_TILE_STORE(3, lower + kWords, pitch * 4);
}

// y[tokens, pitch] = sums[channels][room], transposed.
LANES void write(const float* sums, size_t room, size_t tokens, size_t channels, float* y,
                 size_t pitch) {
  for (size_t c = 0; c < channels; c += 16) {
    const __mmask16 there = first16(channels - c);
    for (size_t t = 0; t < tokens; t += 16) {
      __m512 v[16];
      for (size_t j = 0; j < 16; ++j) v[j] = _mm512_loadu_ps(sums + (c + j) * room + t);
      transpose(v);
      for (size_t j = 0; j < std::min<size_t>(16, tokens - t); ++j)
        _mm512_mask_storeu_ps(y + (t + j) * pitch + c, there, v[j]);
    }
  }
}

}  // namespace

bool linear_exact(const float* x, size_t m, size_t k, const uint16_t* w, size_t n, float* y,
                  size_t pitch) try {
  if (!tiles() || k % kStep) return false;
  constexpr size_t kPair = 2 * kTileRows;
  static thread_local Scratch<float> part_room, sum_room, row_room;
  const size_t channels = (n + kPair - 1) / kPair * kPair;
  float* const rows = row_room.at_least(2 * kSteps * kTileWords);
  const TileState state;
  for (size_t first = 0; first < m; first += kTokens) {
    const size_t tokens = std::min(kTokens, m - first), room = (tokens + kPair - 1) / kPair * kPair;
    float* const parts = part_room.at_least(room * kDepth * kParts / 2);
    float* const sums = sum_room.at_least(channels * room);
    for (size_t at = 0; at < k; at += kDepth) {
      const size_t steps = std::min(kSteps, (k - at) / kStep), tile = steps * kParts * kTileWords;
      for (size_t t = 0; t < room; t += kTileRows)
        pack(x + (first + t) * k + at, t < tokens ? tokens - t : 0, k, steps,
             parts + t / kTileRows * tile);
      for (size_t c = 0; c < channels; c += kPair) {
        pack_rows(w + c * k + at, std::min(kPair, n - c), k, steps, rows);
        for (size_t t = 0; t < room; t += kPair)
          multiply(rows, parts + t / kTileRows * tile, tile, steps, sums + c * room + t, room, at);
      }
    }
    write(sums, room, tokens, n, y + first * pitch, pitch);
  }
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

}  // namespace vlmc
#endif
