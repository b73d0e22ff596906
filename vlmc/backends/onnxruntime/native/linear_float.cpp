// Products with float32 or float16 weights [n, k], read where they are stored.
#include "float_tile.h"
#include "kernels.h"
#include "scratch.h"

#include <algorithm>

namespace vlmc {
namespace {

constexpr size_t kFewTokens = 4;  // up to here weights are read once and never packed
constexpr size_t kInner = 512;    // of a packed panel: 128 KiB
constexpr size_t kAhead = 8192;   // bytes

// Asks for what the loop reads some time later: memory answers late.
AVX512_INLINE void ask(const void* w, bool half, size_t at) {
  const char* from = static_cast<const char*>(w) + at * (half ? 2 : 4) + kAhead;
  _mm_prefetch(from, _MM_HINT_T0);
  if (!half) _mm_prefetch(from + 64, _MM_HINT_T0);
}

template <size_t R>
AVX512 void dots(const float* x, size_t k, size_t n, const void* w, bool half, size_t first,
                 size_t last, const float* bias, float* y) {
  for (size_t c = first; c < last; ++c) {
    __m512 acc[R][2];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
    for (size_t i = 0; i < k; i += 32) {
      ask(w, half, c * k + i);
      const __mmask16 m0 = first16(k - i), m1 = first16(k > i + 16 ? k - i - 16 : 0);
      const __m512 v0 = load(w, half, c * k + i, m0), v1 = load(w, half, c * k + i + 16, m1);
#pragma GCC unroll 4
      for (size_t r = 0; r < R; ++r) {
        acc[r][0] = _mm512_fmadd_ps(v0, _mm512_maskz_loadu_ps(m0, x + r * k + i), acc[r][0]);
        acc[r][1] = _mm512_fmadd_ps(v1, _mm512_maskz_loadu_ps(m1, x + r * k + i + 16), acc[r][1]);
      }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
      y[r * n + c] =
          _mm512_reduce_add_ps(_mm512_add_ps(acc[r][0], acc[r][1])) + (bias ? bias[c] : 0.0f);
  }
}

using Dots = void (*)(const float*, size_t, size_t, const void*, bool, size_t, size_t,
                      const float*, float*);
constexpr Dots kDots[kFewTokens] = {dots<1>, dots<2>, dots<3>, dots<4>};

AVX512 void add_bias(float* y, size_t m, size_t n, const float* bias, size_t count) {
  for (size_t i = 0; i < m; ++i)
    for (size_t c = 0; c < count; c += 16) {
      const __mmask16 there = first16(count - c);
      _mm512_mask_storeu_ps(y + i * n + c, there,
                            _mm512_add_ps(_mm512_maskz_loadu_ps(there, y + i * n + c),
                                          _mm512_maskz_loadu_ps(there, bias + c)));
    }
}

}  // namespace

void linear_float(const float* x, size_t m, size_t k, size_t n, const void* w, bool half,
                  const float* bias, float* y, const Parallel& parallel) {
  if (m == 0) return;
  if (m <= kFewTokens) {
    const size_t tasks = 4 * parallel.threads;
    const size_t of_task = std::max<size_t>(16, (n + tasks - 1) / tasks);
    each(parallel, (n + of_task - 1) / of_task, [&](size_t task) {
      const size_t first = task * of_task;
      kDots[m - 1](x, k, n, w, half, first, std::min(n, first + of_task), bias, y);
    });
    return;
  }
  each(parallel, (n + kPanel - 1) / kPanel, [&](size_t p) {
    static thread_local Scratch<float> room;
    const size_t first = p * kPanel, count = std::min(kPanel, n - first);
    float* panel = room.at_least(std::min(k, kInner) * kPanel);
    for (size_t i = 0; i < k; i += kInner) {
      const size_t inner = std::min(kInner, k - i);
      const void* from = half ? (const void*)(static_cast<const uint16_t*>(w) + i)
                              : (const void*)(static_cast<const float*>(w) + i);
      pack_panels(from, half, k, first, first + count, inner, panel);
      for (size_t row = 0; row < m; row += kTile)
        multiply(std::min(kTile, m - row), x + row * k + i, k, panel, kPanel, inner,
                 y + row * n + first, n, count, i > 0);
    }
    if (bias) add_bias(y + first, m, n, bias + first, count);
  });
}

}  // namespace vlmc
