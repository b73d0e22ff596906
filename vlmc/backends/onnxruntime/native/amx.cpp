// Whether tiles can be multiplied here: on Linux, which keeps the tiles of a process that has asked for
// them (Documentation/arch/x86/xstate.rst).
#include "amx.h"

#if defined(__linux__) && !defined(VLMC_AVX2)
#include <cpuid.h>
#include <strings.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>

namespace vlmc {
namespace {

bool granted() {
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
  constexpr unsigned kAll = kTiles | kInt8 | kBf16;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// The words of VLMC_KERNELS: see native/__init__.py.
bool wanted() {
  const char* said = std::getenv("VLMC_TILES");
  for (const char* off : {"off", "0", "no", "false"})
    if (said && strcasecmp(said, off) == 0) return false;
  return true;
}

}  // namespace

bool tiles() {
  static const bool known = wanted() && granted();
  return known;
}

}  // namespace vlmc
#else
bool vlmc::tiles() { return false; }
#endif
