#pragma once
// Memory asked for before it is read, in an order in which it answers fast.
#include <cstddef>
#include <cstdint>

namespace vlmc {

// Of each eight pages, a line of each in turns. A core that asks for one page after the other waits for
// few lines at a time: on a Xeon (Sapphire Rapids) two threads read 18 GB/s so, and 27 in turns.
constexpr size_t kAskedPages = 8;
constexpr size_t kStretch = kAskedPages << 12, kStretchLines = kStretch / 64;

// A core of Zen 3 or 4 has few lines on their way that it asked for itself. Its second cache foresees more,
// and the better where several long runs go on side by side: products of one token read memory from this
// many places in turns.
constexpr size_t kStreams = 4;

// How a CPU is asked: in streams or not; where it reads from one place, for one line after the other, kFar
// bytes ahead, or in turns; for blocks one after the other whatever is true of the rest. In streams, so many
// groups of a panel ahead. As measured on a Zen 3 where there is AVX2 alone, else on a Zen 4 and a Xeon; of
// a Zen 5 is known that it reads well from one place.
#ifdef VLMC_AVX2
constexpr bool in_streams() { return true; }
constexpr bool in_a_line() { return false; }
constexpr bool kBlocksInALine = true;
constexpr size_t kGroupsAhead = 2;
#else
inline bool zen = __builtin_cpu_is("amd");  // of AVX-512: Zen 4 and later; the tests set it
inline bool in_streams() { return zen; }
inline bool in_a_line() { return zen; }
constexpr bool kBlocksInALine = false;
constexpr size_t kGroupsAhead = 4;
#endif
constexpr size_t kFar = 8192;

// To the second cache. Compilers take a loop that does nothing but __builtin_prefetch for an empty one.
inline void ask_line(const void* at) {
  asm volatile("prefetcht1 %0" : : "m"(*static_cast<const char*>(at)));
}

// Where the line that is asked for as number `line` lies in a stretch.
constexpr size_t in_turns(size_t line) {
  return line % kAskedPages << 12 | line / kAskedPages % 64 << 6;
}

// What a thread reads from front to back, up to `end`, and what it goes on with: `then`, or null.
class Course {
 public:
  Course() = default;
  Course(const void* end, const void* then)
      : end_(reinterpret_cast<uintptr_t>(end)),
        on_(then ? reinterpret_cast<uintptr_t>(then) - end_ : -kStretch) {}

  // Asks for a line of the next stretch while one is read at `at`. Behind the end it is one of what
  // is read then, or one that is there already.
  void ask(const void* at) const {
    ask_line(of(reinterpret_cast<uintptr_t>(at) / 64));
  }

  // The same of the four lines around `at`.
  void ask_four(const void* at) const {
    const char* to = of(reinterpret_cast<uintptr_t>(at) / 256 * 4);
    const size_t apart = in_a_line() ? 64 : 4096;
    for (size_t i = 0; i < 4; ++i) ask_line(to + i * apart);
  }

  // Where it goes on that reads up to `at`.
  const char* on(const void* at) const {
    const uintptr_t to = reinterpret_cast<uintptr_t>(at);
    return reinterpret_cast<const char*>(to + (to < end_ ? 0 : on_));
  }

  // Asks for what is read first, of which nothing was asked for.
  void start(const void* at) const {
    const char* from = static_cast<const char*>(at);
    for (size_t line = 0; line < (in_a_line() ? kFar / 64 : kStretchLines); ++line) {
      const char* to = from + (in_a_line() ? line * 64 : in_turns(line));
      if (reinterpret_cast<uintptr_t>(to) < end_) ask_line(to);
    }
  }

 private:
  const char* of(uintptr_t line) const {
    const uintptr_t to =
        in_a_line() ? line * 64 + kFar : (line / kStretchLines + 1) * kStretch + in_turns(line);
    return reinterpret_cast<const char*>(to + (to < end_ ? 0 : on_));
  }

  uintptr_t end_ = 0, on_ = -kStretch;
};

}  // namespace vlmc
