#pragma once
// Weights that are read next, asked for by a thread that waits: memory has nothing else to do then.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "ahead.h"

namespace vlmc {

// What the products of an operator read, as its threads divide it: each has its part of every one, or
// of all behind each other.
struct Weights {
  static constexpr size_t kMost = 3;
  struct {
    const char* at;
    size_t bytes;
  } of[kMost] = {};
  bool beside = false;
};

// Memory one thread reads from front to back.
struct Front {
  const char* at = nullptr;
  size_t bytes = 0;
};

// What thread `number` reads of them first, and then.
struct Fronts {
  Front first, then;

  Fronts(const Weights* next, size_t number, size_t threads) {
    if (!next) return;
    const auto& of = next->of;
    if (next->beside) {
      const size_t skipped = of[0].bytes / threads * number, left = of[0].bytes - skipped;
      first = {of[0].at + skipped, left};
      if (of[1].at) then = {of[1].at + skipped, left};
      return;
    }
    size_t all = 0, which = 0;
    for (const auto& one : of) all += one.bytes;
    if (!all) return;
    size_t skipped = all / threads * number;
    for (; skipped >= of[which].bytes; ++which) skipped -= of[which].bytes;
    first = {of[which].at + skipped, of[which].bytes - skipped};
    if (which + 1 < Weights::kMost && of[which + 1].at) then = {of[which + 1].at, of[which + 1].bytes};
  }
};

// As much of what one thread will read as stays near until then.
class Upcoming {
 public:
  // Waits for a moment.
  void wait(const Weights* next, size_t number, size_t threads) {
    if (next != next_) begin(next, number, threads);
    if (line_ == lines_) at_ = later_.at, lines_ = later_.bytes / 64, line_ = 0, later_ = {};
    if (line_ == lines_) return _mm_pause();
    for (size_t i = 0; i < kLines && line_ < lines_; ++i, ++line_)
      ask_line(at_ + line_ / kStretchLines * kStretch + in_turns(line_));
  }

 private:
  static constexpr size_t kNear = 128 << 10, kLines = 4;

  void begin(const Weights* next, size_t number, size_t threads) {
    const Fronts fronts(next, number, threads);
    next_ = next, at_ = fronts.first.at, line_ = 0, later_ = fronts.then;
    const bool beside = next && next->beside;
    const size_t first = std::min(fronts.first.bytes, beside ? kNear / 2 : kNear);
    lines_ = first / 64;
    later_.bytes = std::min(later_.bytes, beside ? kNear / 2 : kNear - first);
  }

  const Weights* next_ = nullptr;
  const char* at_ = nullptr;
  size_t line_ = 0, lines_ = 0;
  Front later_;
};

// A thread's own.
inline Upcoming& upcoming() {
  static thread_local Upcoming of_this_thread;
  return of_this_thread;
}

}  // namespace vlmc
