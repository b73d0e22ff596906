// Products with int8 weights that have one scale a channel and lie in panels, as they are multiplied.
#include "norm.h"
#include "panels.h"
#include "tile_products.h"

namespace vlmc {
namespace {

// Up to here weights are read as often as there are tiles of tokens; else they are copied near, and
// prepared, once.
constexpr size_t kNear = 12;

void multiply(const Tokens& t, size_t m, size_t k, const Product* products, size_t count, Gate gate,
              const Parallel& parallel) {
  const size_t groups = (k + 3) / 4, bytes = groups * 4 * kPanel;
  const auto panel = [&](const Product& of, size_t first) {
    return static_cast<const uint8_t*>(of.w) + first / kPanel * bytes;
  };
  if (t.tiled)
    return by_tiles<false>(
        t, m, products, count, gate, parallel,
        [&](const Product& of, size_t first, const TilePanel& to, float*) LANES {
          const uint8_t* w = panel(of, first);
          for (size_t group = 0; group < groups; ++group, w += 4 * kPanel)
            for (size_t c = 0; c < kPanel; c += 16)
              store_words(to.at(c, group), load_words(w + 4 * c));
        },
        [&](const Product& of, size_t first) { return std::make_pair(panel(of, first), bytes); });
  if (m <= kNear)
    return by_panels<false, true>(t, m, groups, products, count, gate, parallel,
                                  [&](const Product& of, size_t first, size_t, uint8_t*,
                                      float*) -> Panel { return {panel(of, first), true}; });
  by_panels<false, false>(
      near_tokens(t, m, parallel), m, groups, products, count, gate, parallel,
      [&](const Product& of, size_t first, size_t channels, uint8_t* room, float*) -> Panel {
        const uint8_t* w = panel(of, first);
        copy_near(w, groups, channels, room);
        const Panel near = {room, false};
        return first + kPanel < of.n ? near.before(w + bytes, bytes, groups, m) : near;
      });
}

}  // namespace

void linear_panels(const float* x, size_t m, size_t k, const Product* products, size_t count,
                   Gate gate, const Parallel& parallel) {
  if (m == 0) return;
  multiply(quantize_tokens(x, m, k, tiled(m), parallel), m, k, products, count, gate, parallel);
}

void linear_panels(const Norm& norm, size_t m, size_t k, const Product* products, size_t count,
                   Gate gate, const Parallel& parallel) {
  if (m == 0) return;
  const auto row = [&](size_t i) {
    static thread_local Scratch<float> kept;
    float* normed = kept.at_least(k);
    norm_row(norm, i, k, normed);
    return normed;
  };
  multiply(quantize_rows(m, k, tiled(m), parallel, row), m, k, products, count, gate, parallel);
}

}  // namespace vlmc
