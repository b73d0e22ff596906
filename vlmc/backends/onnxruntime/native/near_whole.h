#pragma once
// Near panels where an instruction sums four products of bytes in 32 bits: as they are stored, shifted.
#include "byte_tiles.h"

namespace vlmc {

inline size_t near_bytes(size_t groups) { return groups * 4 * kPanel; }

// Writes 16 channels of a near panel, group after group.
class NearWriter {
 public:
  LANES_LAMBDA NearWriter(uint8_t* room, size_t, size_t channel) : to_(room + channel * 4) {}

  LANES_LAMBDA void put(size_t group, Words four) {
    store_words(to_ + group * 4 * kPanel, shifted(four));
  }

 private:
  uint8_t* to_;
};

LANES inline void copy_near(const uint8_t* panel, size_t groups, size_t, uint8_t* room) {
  for (size_t i = 0; i < near_bytes(groups); i += 64)
    store_words(room + i, shifted(load_words(panel + i)));
}

inline Tokens near_tokens(const Tokens& t, size_t, const Parallel&) { return t; }

// Every token by one near panel.
inline void multiply_near(const Tokens& t, size_t m, const Panel& panel, size_t groups,
                          const Out& out) {
  using Tiles = void (*)(const Tokens&, size_t, Panel, size_t, const Out&);
  static constexpr Tiles kTiles[2][2] = {
      {multiply_tiles<4, false, false, false>, multiply_tiles<4, false, false, true>},
      {multiply_tiles<4, false, true, false>, multiply_tiles<4, false, true, true>}};
  kTiles[out.count >= kPanel][out.bias != nullptr](t, m, panel, groups, out);
}

}  // namespace vlmc
