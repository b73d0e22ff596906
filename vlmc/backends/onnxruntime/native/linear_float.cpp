// Products with float32, float16 or bfloat16 weights [n, k], read where they are stored.
#include <new>

#include "activation.h"
#include "ahead.h"
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

// Adds, to acc, the products of 32 numbers from `i` on of R rows of x and of a row of w; of fewer
// where masks say so.
template <size_t R, Stored As>
LANES_INLINE void dot(const float* x, size_t k, const void* w, const Course& course, size_t at,
                      size_t i, Mask m0, Mask m1, Floats (*acc)[2]) {
  if (i % (256 / size_of(As)) == 0)
    course.ask_four(static_cast<const char*>(w) + (at + i) * size_of(As));
  const Floats v0 = load(w, As, at + i, m0), v1 = load(w, As, at + i + 16, m1);
#pragma GCC unroll 4
  for (size_t r = 0; r < R; ++r) {
    acc[r][0] = fmadd(v0, load(m0, x + r * k + i), acc[r][0]);
    acc[r][1] = fmadd(v1, load(m1, x + r * k + i + 16), acc[r][1]);
  }
}

template <size_t R, Stored As>
LANES void dots(const float* x, size_t k, size_t n, const void* w, size_t first, size_t last,
                const float* bias, float* y) {
  // Other threads read what is behind the last.
  const Course course(static_cast<const char*>(w) + n * k * size_of(As), nullptr);
  for (size_t c = first; c < last; ++c) {
    Floats acc[R][2];
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r) acc[r][0] = acc[r][1] = floats(0);
    size_t i = 0;
    for (; i + 32 <= k; i += 32) dot<R, As>(x, k, w, course, c * k, i, 0xffff, 0xffff, acc);
    if (i < k)
      dot<R, As>(x, k, w, course, c * k, i, first16(k - i), first16(k > i + 16 ? k - i - 16 : 0),
                 acc);
#pragma GCC unroll 4
    for (size_t r = 0; r < R; ++r)
      y[r * n + c] = reduce_add(add(acc[r][0], acc[r][1])) + (bias ? bias[c] : 0.0f);
  }
}

using Dots = void (*)(const float*, size_t, size_t, const void*, size_t, size_t, const float*,
                      float*);
template <Stored As>
constexpr Dots kDots[kFewTokens] = {dots<1, As>, dots<2, As>, dots<3, As>, dots<4, As>};

// Where rows lie that are packed next, kRowsAsked of them, or null; and the bytes of a number.
struct Next {
  const char* rows;
  size_t stride, size;
};

// y[R][count] = x[R][inner] panel[inner][kWide] + from, 16 (V - 1) < count <= 16 V, inner > 0; without
// `from` nothing is added. Memory is asked for, a few lines at a time, that would otherwise be
// waited for: the next panel's, and at last where y goes, so late that the first cache keeps it.
template <size_t R, size_t V>
LANES void panel_tile(const float* x, size_t ldx, const float* panel, size_t inner,
                      const float* from, size_t ldf, float* y, size_t ldy, size_t count,
                      const Next& next) {
  Floats acc[R][V];
  const Mask last = first16(count - (V - 1) * 16);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j)
      acc[r][j] = from ? load(j + 1 < V ? 0xffff : last, from + r * ldf + j * 16) : floats(0);
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
      Floats v[V];
#pragma GCC unroll 4
      for (size_t j = 0; j < V; ++j) v[j] = load(panel + i * kWide + j * 16);
#pragma GCC unroll 8
      for (size_t r = 0; r < R; ++r) {
        const Floats one = floats(x[r * ldx + i]);
#pragma GCC unroll 4
        for (size_t j = 0; j < V; ++j) acc[r][j] = fmadd(one, v[j], acc[r][j]);
      }
    } while (++i < stop);
  } while (i < inner);
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (size_t j = 0; j < V; ++j) {
      hold(acc[r][j]);
      store(y + r * ldy + j * 16, j + 1 < V ? 0xffff : last, acc[r][j]);
    }
}

using PanelTile = void (*)(const float*, size_t, const float*, size_t, const float*, size_t, float*,
                           size_t, size_t, const Next&);
template <size_t R>
constexpr PanelTile kOfRows[4] = {panel_tile<R, abreast(1)>, panel_tile<R, abreast(2)>,
                                  panel_tile<R, abreast(3)>, panel_tile<R, abreast(4)>};
constexpr const PanelTile* kPanelTiles[kTile] = {kOfRows<1>, kOfRows<2>, kOfRows<3>,
                                                 kOfRows<4>, kOfRows<5>, kOfRows<6>};

// The rows of x, and how the weights that they are multiplied by lie.
struct Tokens {
  const float* x;
  size_t m, k;
  Stored as;

  size_t size() const { return size_of(as); }
  const char* row(const Product& p, size_t channel) const {
    return static_cast<const char*>(p.w) + channel * k * size();
  }
  // The inner size is cut into parts of about one size.
  size_t parts() const { return (k + kInner - 1) / kInner; }
  size_t part() const { return ((k + parts() - 1) / parts() + 15) / 16 * 16; }
};

// Where a panel of a product goes, and what it becomes there.
struct Out {
  float* y;
  size_t stride;
  Gate gate;
  const float* by;  // [m][64]: what it is multiplied by once it is activated; or null
};

// A panel, packed in `room` part by part. Sums lie together behind it until the last part: rows of
// y share few sets of a cache. after: the rows that are packed when this is done, or null.
void multiply_panel(const Tokens& t, const Product& p, size_t first, const Out& out,
                    const char* after, float* room) {
  const size_t most = t.part(), size = t.size(), tiles = (t.m + kTile - 1) / kTile;
  const size_t count = std::min(kPanel, p.n - first);
  float* sums = room + most * kPanel;
  for (size_t i = 0; i < t.k; i += most) {
    const size_t inner = std::min(most, t.k - i);
    const bool end = i + inner == t.k;
    pack_panels(t.row(p, 0) + i * size, t.as, t.k, first, first + count, inner, room);
    // The last tiles ask for what is packed next: earlier, x would drive it from the cache again.
    constexpr size_t kAsking = kPanel / kRowsAsked;
    const char* next = end ? after : t.row(p, first) + (i + inner) * size;
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t row = tile * kTile, rows = std::min(kTile, t.m - row);
      const bool asks = next && tile + kAsking >= tiles;
      const size_t asked = asks ? (tile + kAsking - tiles) * kRowsAsked : 0;
      const float* from = i ? sums + row * kPanel : p.bias ? p.bias + first : nullptr;
      float* to = end ? out.y + row * out.stride : sums + row * kPanel;
      const size_t stride = end ? out.stride : kPanel;
      for (size_t c = 0; c < count; c += kWide) {
        const size_t some = std::min(kWide, count - c);
        kPanelTiles[rows - 1][(some + 15) / 16 - 1](
            t.x + row * t.k + i, t.k, room + c * inner, inner, from ? from + c : nullptr,
            i ? kPanel : 0, to + c, stride, some,
            {asks && !c ? next + asked * t.k * size : nullptr, t.k * size, size});
      }
      if (end && out.gate != Gate::none)
        gate_rows(out.gate, rows, count, out.by ? out.by + row * kPanel : nullptr, kPanel, to,
                  stride);
    }
  }
}

size_t panels(const Product& p) { return (p.n + kPanel - 1) / kPanel; }

void many(const Tokens& t, const Product* products, size_t count, Gate gate,
          const Parallel& parallel) {
  const bool pair = gate != Gate::none && count > 1;
  size_t units = 0;
  for (size_t i = 0; i < (pair ? 1 : count); ++i) units += panels(products[i]);
  struct Place {
    const Product* of;
    size_t first;
  };
  const auto place = [&](size_t unit) {
    const Product* p = products;
    for (; unit >= panels(*p); ++p) unit -= panels(*p);
    return Place{p, unit * kPanel};
  };
  const size_t summed = t.parts() > 1 ? t.m : 0;
  // Panels that follow each other are one thread's: else neighbours would fetch lines of y that the
  // other writes.
  together<1>(parallel, [&](Member member) {
    static thread_local Scratch<float> kept;
    float* room = kept.at_least((t.part() + summed + (pair ? t.m : 0)) * kPanel);
    float* beside = room + (t.part() + summed) * kPanel;
    member.share(units, 1, [&](size_t index, size_t last) {
      for (; index < last; ++index) {
        const Place at = place(index);
        const char* after = nullptr;
        if (index + 1 < units) {
          const Place next = place(index + 1);
          after = t.row(pair ? products[1] : *next.of, next.first);
        }
        if (pair)
          multiply_panel(t, products[1], at.first, {beside, kPanel, Gate::none, nullptr},
                         t.row(*at.of, at.first), room);
        multiply_panel(t, *at.of, at.first,
                       {at.of->y + at.first, at.of->n, gate, pair ? beside : nullptr}, after, room);
      }
    });
  });
}

// A range of channels of each product, all of one width where there is a gate, is one task.
void few(const Tokens& t, const Product* products, size_t count, Gate gate,
         const Parallel& parallel) {
  const bool pair = gate != Gate::none && count > 1;
  size_t n = 0;
  for (size_t i = 0; i < (pair ? 1 : count); ++i) n += products[i].n;
  const size_t tasks = 4 * parallel.threads;
  const size_t of_task = std::max<size_t>(16, (n + tasks - 1) / tasks);
  const Dots dots =
      (t.as == Stored::float16 ? kDots<Stored::float16> : kDots<Stored::float32>)[t.m - 1];
  each(parallel, (n + of_task - 1) / of_task, [&](size_t task) {
    static thread_local Scratch<float> kept;
    size_t first = task * of_task, left = std::min(of_task, n - first);
    for (const Product* p = products; left; ++p) {
      if (first >= p->n) {
        first -= p->n;
        continue;
      }
      const size_t width = std::min(left, p->n - first), last = first + width;
      dots(t.x, t.k, p->n, p->w, first, last, p->bias, p->y);
      float* by = pair ? kept.at_least(t.m * width) : nullptr;
      if (pair)
        dots(t.x, t.k, width, products[1].w, first, last, products[1].bias, by - first);
      if (gate != Gate::none) gate_rows(gate, t.m, width, by, width, p->y + first, p->n);
      left -= width, first = 0;
    }
  });
}

}  // namespace

void linear_float(const float* x, size_t m, size_t k, const Product* products, size_t count,
                  bool half, Gate gate, const Parallel& parallel) {
  if (m == 0) return;
  const Tokens tokens{x, m, k, half ? Stored::float16 : Stored::float32};
  (m <= kFewTokens ? few : many)(tokens, products, count, gate, parallel);
}

bool linear_bfloat16(const float* x, size_t m, size_t k, const uint16_t* w, size_t n, float* y,
                     size_t pitch) try {
  if (linear_exact(x, m, k, w, n, y, pitch)) return true;
  const Tokens t{x, m, k, Stored::bfloat16};
  const Product of{w, nullptr, nullptr, nullptr, y, n};
  static thread_local Scratch<float> kept;
  float* const room = kept.at_least((t.part() + m) * kPanel);
  // Panels however few rows there are: dots would add in another order.
  for (size_t c = 0; c < n; c += kPanel) {
    const char* const after = c + kPanel < n ? t.row(of, c + kPanel) : nullptr;
    multiply_panel(t, of, c, {y + c, pitch, Gate::none, nullptr}, after, room);
  }
  return true;
} catch (const std::bad_alloc&) {
  return false;
}

}  // namespace vlmc
