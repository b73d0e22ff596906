#pragma once
// Weights that are read next, asked for by a thread that waits: memory has nothing else to do then.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstddef>

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

// What one thread will read of them first, as much as stays near until then.
class Upcoming {
 public:
  // Waits for a moment.
  void wait(const Weights* next, size_t number, size_t threads) {
    if (next != next_) begin(next, number, threads);
    if (at_ == end_) at_ = later_, end_ = later_end_, later_ = later_end_ = nullptr;
    if (at_ == end_) return _mm_pause();
    for (size_t i = 0; i < kLines && at_ != end_; ++i, at_ += 64) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  static constexpr size_t kNear = 128 << 10, kLines = 4;

  void begin(const Weights* next, size_t number, size_t threads) {
    next_ = next, at_ = end_ = later_ = later_end_ = nullptr;
    if (!next) return;
    const auto range = [](const char* from, size_t bytes, const char*& at, const char*& end) {
      at = from, end = from + bytes / 64 * 64;
    };
    const auto& of = next->of;
    if (next->beside) {
      const size_t first = of[0].bytes / threads * number, left = of[0].bytes - first;
      range(of[0].at + first, std::min(left, kNear / 2), at_, end_);
      if (of[1].at) range(of[1].at + first, std::min(left, kNear / 2), later_, later_end_);
      return;
    }
    size_t all = 0, which = 0;
    for (const auto& one : of) all += one.bytes;
    if (!all) return;
    size_t first = all / threads * number;
    for (; first >= of[which].bytes; ++which) first -= of[which].bytes;
    range(of[which].at + first, std::min(of[which].bytes - first, kNear), at_, end_);
    if (which + 1 < Weights::kMost && of[which + 1].at)
      range(of[which + 1].at, std::min<size_t>(of[which + 1].bytes, kNear - (end_ - at_)), later_,
            later_end_);
  }

  const Weights* next_ = nullptr;
  const char *at_ = nullptr, *end_ = nullptr, *later_ = nullptr, *later_end_ = nullptr;
};

// A thread's own.
inline Upcoming& upcoming() {
  static thread_local Upcoming of_this_thread;
  return of_this_thread;
}

}  // namespace vlmc
