// Whether tiles can be multiplied here.
#include "amx.h"

#include <cstdlib>
#include <cstring>

#ifdef __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vlmc {
namespace {

#ifdef __linux__
// Linux keeps the tiles of a process that has asked for them (Documentation/arch/x86/xstate.rst).
bool granted() {
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
  constexpr unsigned kAll = kTiles | kInt8 | kBf16;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool granted() { return false; }
#endif

bool wanted() {
  const char* said = std::getenv("VLMC_TILES");
  return !said || std::strcmp(said, "off") != 0;
}

}  // namespace

bool tiles() {
  static const bool known = wanted() && granted();
  return known;
}

}  // namespace vlmc
