#pragma once
// Products of tiles, 16 rows of 64 bytes each (Intel AMX), on CPUs and systems that have them.
//
// In assembly, as bfloat16.h: only who knows that `tiles()` is true comes here.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace vlmc {

// Whether this CPU multiplies tiles of int8 and of bfloat16, and the system lets this process do so;
// asked once. VLMC_TILES=off in the environment says no.
bool tiles();

constexpr size_t kTileRows = 16, kTileBytes = 64, kWholeTile = kTileRows * kTileBytes;

// All eight tiles of a thread, whole, as long as this lives. A thread has no other use for them.
class TileState {
 public:
  TileState() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } static const whole;
    asm volatile("ldtilecfg %0" : : "m"(whole));
  }
  ~TileState() { asm volatile("tilerelease"); }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;
};

// Asks for a tile before it is loaded: while one comes from the second cache, products wait.
inline void ask_tile(const void* from, size_t stride) {
  for (size_t row = 0; row < kTileRows; ++row)
    _mm_prefetch(static_cast<const char*>(from) + row * stride, _MM_HINT_T0);
}

// Tile numbers are part of the instructions.
#define VLMC_TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile ::)
// Rows of 64 bytes, `stride` bytes apart.
#define VLMC_TILE_LOAD(tile, from, stride)                      \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile               \
               :                                                \
               : "r"((const void*)(from)), "r"((size_t)(stride)) \
               : "memory")
#define VLMC_TILE_STORE(tile, to, stride)                  \
  asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)"      \
               :                                           \
               : "r"((void*)(to)), "r"((size_t)(stride))   \
               : "memory")
// sum[16][16] += a[16][64 int8] b[16 groups of 4][16 columns][4 int8], in int32.
#define VLMC_TILE_INT8(sum, a, b) \
  asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)
// sum[16][16] += a[16][32 bfloat16] b[16 pairs][16 columns][2 bfloat16], in float32.
#define VLMC_TILE_BF16(sum, a, b) \
  asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

}  // namespace vlmc
