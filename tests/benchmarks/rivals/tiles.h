// Included before llama.cpp's own text. GCC's header (12.2) says that LDTILECFG reads 8 bytes (its
// bug 114098) and TILELOADD none, so the optimizer drops what was stored for them: ggml's tiles are
// configured with what happened to be on the stack, and the process ends with SIGSEGV.
#pragma once
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)))
#undef _tile_loadd
#define _tile_loadd(dst, base, stride) _tile_loadd_reads(dst, base, stride)
#define _tile_loadd_reads(dst, base, stride)                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #dst               \
                     :                                               \
                     : "r"((const void*)(base)), "r"((long)(stride)) \
                     : "memory")
#endif
