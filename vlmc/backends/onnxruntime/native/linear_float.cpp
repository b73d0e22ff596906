// Products with float32 or float16 weights [n, k], read where they are stored.
#include "float_tile.h"
#include "kernels.h"
#include "scratch.h"
#include "team.h"

namespace vlmc {
namespace {

constexpr size_t kFewTokens = 4;  // up to here weights are read once and never packed
constexpr size_t kInner = 1024;   // of a packed panel: 256 KiB, which the second cache keeps
constexpr size_t kChunk = 16;     // of the inner size: what is asked for at once
constexpr size_t kRowsAsked = 4;  // of the next panel's, while one tile is multiplied
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

// Where rows lie that are packed next, kRowsAsked of them, or null; and the bytes of a number.
struct Next {
  const char* rows;
  size_t stride, size;
};

// y[R][count] = x[R][inner] panel[inner][64] + from, 16 (V - 1) < count <= 16 V, inner > 0; without
// `from` nothing is added. Memory is asked for, a few lines at a time, that would otherwise be
// waited for: the next panel's, and at last where y goes, so late that the first cache keeps it.
template <size_t R, size_t V>
AVX512 void panel_tile(const float* x, size_t ldx, const float* panel, size_t inner, const float* from,
                 size_t ldf, float* y, size_t ldy, size_t count, const Next& next) {
  __m512 acc[R][V];
  const __mmask16 last = first16(count - (V - 1) * 16);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      acc[r][j] = from ? _mm512_maskz_loadu_ps(j + 1 < V ? 0xffff : last, from + r * ldf + j * 16)
                       : _mm512_setzero_ps();
  const size_t turn = inner > R * kChunk ? inner - R * kChunk : 0;
  const float* line = y;
  size_t i = 0;
  do {
    if (i >= turn) {
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) __builtin_prefetch(line + j * 16, 1);  // as asm it spills sums
      line += ldy;
    } else if (next.rows) {
#pragma GCC unroll 4
      for (size_t r = 0; r < kRowsAsked; ++r)
        _mm_prefetch(next.rows + r * next.stride + i * next.size, _MM_HINT_T1);
    }
    const size_t stop = std::min(inner, i + kChunk);
    do {
      __m512 v[V];
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) v[j] = _mm512_load_ps(panel + i * kPanel + j * 16);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        const __m512 one = _mm512_set1_ps(x[r * ldx + i]);
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j) acc[r][j] = _mm512_fmadd_ps(one, v[j], acc[r][j]);
      }
    } while (++i < stop);
  } while (i < inner);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j) {
      asm("" : "+v"(acc[r][j]));  // in its register up to here: the compiler would rather spill it
      _mm512_mask_storeu_ps(y + r * ldy + j * 16, j + 1 < V ? 0xffff : last, acc[r][j]);
    }
}

using PanelTile = void (*)(const float*, size_t, const float*, size_t, const float*, size_t, float*,
                           size_t, size_t, const Next&);
template <size_t R>
constexpr PanelTile kOfRows[4] = {panel_tile<R, 1>, panel_tile<R, 2>, panel_tile<R, 3>,
                                  panel_tile<R, 4>};
constexpr const PanelTile* kPanelTiles[kTile] = {kOfRows<1>, kOfRows<2>, kOfRows<3>,
                                                 kOfRows<4>, kOfRows<5>, kOfRows<6>};

struct Factors {
  const float* x;
  size_t m, k, n;
  const char* w;
  bool half;
  const float* bias;
  float* y;
};

// Panel p of y. The inner size is cut into parts of about one size, whose sums lie together until
// the last: rows of y share few sets of a cache.
void multiply_panel(const Factors& f, size_t p) {
  static thread_local Scratch<float> room;
  const size_t parts = (f.k + kInner - 1) / kInner, tiles = (f.m + kTile - 1) / kTile;
  const size_t most = ((f.k + parts - 1) / parts + 15) / 16 * 16, size = f.half ? 2 : 4;
  const size_t first = p * kPanel, count = std::min(kPanel, f.n - first);
  float* panel = room.at_least((most + (parts > 1 ? f.m : 0)) * kPanel);
  float* sums = panel + most * kPanel;
  for (size_t i = 0; i < f.k; i += most) {
    const size_t inner = std::min(most, f.k - i);
    const bool end = i + inner == f.k;
    pack_panels(f.w + i * size, f.half, f.k, first, first + count, inner, panel);
    // The last tiles ask for what is packed next: earlier, x would drive it from the cache again.
    const char* next = end ? f.w + (first + kPanel) * f.k * size
                           : f.w + (first * f.k + i + inner) * size;
    constexpr size_t kAsking = kPanel / kRowsAsked;
    for (size_t t = 0; t < tiles; ++t) {
      const size_t row = t * kTile, rows = std::min(kTile, f.m - row);
      const bool asks = t + kAsking >= tiles && (!end || first + kPanel < f.n);
      const size_t asked = asks ? (t + kAsking - tiles) * kRowsAsked : 0;
      const float* from = i ? sums + row * kPanel : f.bias ? f.bias + first : nullptr;
      kPanelTiles[rows - 1][(count + 15) / 16 - 1](
          f.x + row * f.k + i, f.k, panel, inner, from, i ? kPanel : 0,
          end ? f.y + row * f.n + first : sums + row * kPanel, end ? f.n : kPanel, count,
          {asks ? next + asked * f.k * size : nullptr, f.k * size, size});
    }
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
  // Panels that follow each other are one thread's: else neighbours would fetch lines of y that the
  // other writes.
  const Factors factors{x, m, k, n, static_cast<const char*>(w), half, bias, y};
  together<1>(parallel, [&](Member member) {
    member.share((n + kPanel - 1) / kPanel, 1, [&](size_t p, size_t last) {
      for (; p < last; ++p) multiply_panel(factors, p);
    });
  });
}

}  // namespace vlmc
