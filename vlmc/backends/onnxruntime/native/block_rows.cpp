// Rows of a table in blocks: a lane of its panels each.
#include <algorithm>
#include <cstring>

#include "linear_blocks.h"
#include "scratch.h"

namespace vlmc {
namespace {

template <int Bits>
LANES void row(const BlockPanels& table, size_t id, size_t k, float* y) {
  const BlockPanel panel = table[id / kLanes];
  const size_t lane = id % kLanes;
  const uint8_t* codes = panel.codes + lane * 4;
  constexpr size_t kFours = Bits == 4 ? 1 : 2;  // of bytes, that hold eight numbers
  size_t n = 0;
  for (size_t b = 0; b < table.blocks; ++b) {
    const Floats scale = broadcast_lane(scales_of(panel, b), lane);
    const Words zero = broadcast_lane(zeros_of<Bits>(panel, b), lane);
    for (size_t at = 0; at < table.bytes && n < k; at += kFours * 64, codes += kFours * 64, n += 8) {
      int32_t fours[2];
      for (size_t i = 0; i < kFours; ++i) std::memcpy(fours + i, codes + i * 64, 4);
      if (Bits == 4) fours[1] = fours[0] >> 4;
      __m128i eight = _mm_set_epi32(0, 0, fours[1], fours[0]);
      if (Bits == 4) {  // even ones, then odd ones
        eight = _mm_and_si128(eight, _mm_set1_epi8(15));
        eight = _mm_unpacklo_epi8(eight, _mm_srli_si128(eight, 4));
      }
      const Floats values = to_floats(sub(to_words(eight), zero));
      const Mask there = first16(std::min<size_t>(8, k - n));
      store(y + n, there, mul(values, scale));
    }
  }
}

}  // namespace

void block_rows(const Product& table, size_t k, int bits, size_t block, const int64_t* ids,
                size_t count, const Parallel& parallel) {
  const BlockPanels panels(table, k, bits, block);
  const auto of = bits == 4 ? row<4> : row<8>;
  constexpr size_t kRows = 16;  // of a task
  each(parallel, (count + kRows - 1) / kRows, [&](size_t task) {
    for (size_t i = task * kRows; i < std::min(count, (task + 1) * kRows); ++i)
      of(panels, (size_t)ids[i], k, table.y + i * k);
  });
}

}  // namespace vlmc
