#pragma once
// Work in stages on one set of threads: waking them costs as much as a small product.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <thread>
#include <type_traits>

#include "kernels.h"
#include "upcoming.h"

namespace vlmc {

constexpr size_t kTeam = 64;  // threads of a team, at most

// What the threads of a team know of one stage. Each has a range of the work, `first` and `end` in
// one word, from whose front it takes its parts: memory is read from front to back. A thread that
// has none left takes half of another's range, from the back.
struct Stage {
  static constexpr uint64_t kUntouched = ~uint64_t{0};
  struct alignas(64) Range {
    std::atomic<uint64_t> of;
  };
  Range ranges[kTeam];
  alignas(64) std::atomic<size_t> done;

  void start(size_t threads) {
    for (size_t i = 0; i < threads; ++i) ranges[i].of.store(kUntouched, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
  }
};

// One thread of a team. Stages follow each other: all threads call the same ones in one order.
class Member {
 public:
  const size_t number;  // less than team_size

  Member(size_t number, const Parallel& parallel, size_t threads, Stage* stages,
         const std::atomic<bool>& failed)
      : number(number), parallel_(parallel), threads_(threads), next_(stages), failed_(failed) {}

  // body(first, last) for parts of 0 .. count, count < 2^31, each number once, by whichever thread
  // is free. Parts have at least `least` numbers where there are as many, and end at multiples of
  // `unit` but for those that another thread's begins behind.
  template <typename F>
  void share(size_t count, size_t least, F&& body, size_t unit = 1) {
    stage_ = next_++, count_ = count;
    do {
      size_t done = 0;
      std::atomic<uint64_t>& own = stage_->ranges[number].of;
      uint64_t seen = own.load(std::memory_order_relaxed);
      for (;;) {
        const size_t first = begin(seen, number), left = end(seen, number) - first;
        if (left == 0) break;
        const size_t wanted = first + std::max(least, left / 4);
        const size_t size = std::min(left, (wanted + unit - 1) / unit * unit - first);
        if (!own.compare_exchange_weak(seen, word(first + size, first + left))) continue;
        body(first, first + size);
        done += size;
        seen = own.load(std::memory_order_relaxed);
      }
      if (done) stage_->done.fetch_add(done, std::memory_order_release);
    } while (steal(least));
  }

  // Where a run of the work ends that this thread does, `first` .. `last` its part: at the end of its
  // own range, unless it helps another.
  size_t end_of_run(size_t first, size_t last) const {
    const size_t begin = count_ * number / threads_, end = count_ * (number + 1) / threads_;
    return begin <= first && last <= end ? end : last;
  }

  // What this thread reads first behind this call, or null.
  const char* front_after() const {
    const Weights* after =
        parallel_.after ? parallel_.after->load(std::memory_order_relaxed) : nullptr;
    return Fronts(after, number, threads_).first.at;
  }

  // Waits until all of the stage is done: for what running threads have taken, and no other, so that
  // one thread alone gets through. Nor is a stage waited for that a thread had no memory for.
  void join() const {
    const Weights* next =
        parallel_.next ? parallel_.next->load(std::memory_order_relaxed) : nullptr;
    for (size_t turns = 0; stage_->done.load(std::memory_order_acquire) < count_; ++turns) {
      if (failed_.load(std::memory_order_relaxed)) return;
      if (turns < kTurns)
        upcoming().wait(next, number, threads_);
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr size_t kTurns = 4096;

  static uint64_t word(size_t first, size_t end) { return uint64_t{first} << 32 | end; }
  size_t begin(uint64_t range, size_t of) const {
    return range == Stage::kUntouched ? count_ * of / threads_ : range >> 32;
  }
  size_t end(uint64_t range, size_t of) const {
    return range == Stage::kUntouched ? count_ * (of + 1) / threads_ : range & 0xffffffff;
  }

  // Takes work from whom most is left to; false where nothing is.
  bool steal(size_t least) {
    for (;;) {
      size_t victim = number, most = 0;
      uint64_t seen = 0;
      for (size_t i = 0; i < threads_; ++i) {
        const uint64_t range = stage_->ranges[i].of.load(std::memory_order_relaxed);
        const size_t left = end(range, i) - begin(range, i);
        if (i != number && left > most) victim = i, most = left, seen = range;
      }
      if (!most) return false;
      const size_t taken = std::min(most, std::max(least, most / 2));
      const size_t first = begin(seen, victim), last = end(seen, victim);
      std::atomic<uint64_t>& of = stage_->ranges[victim].of;
      if (!of.compare_exchange_strong(seen, word(first, last - taken))) continue;
      stage_->ranges[number].of.store(word(last - taken, last));
      return true;
    }
  }

  const Parallel& parallel_;
  size_t threads_;
  Stage *stage_ = nullptr, *next_;
  size_t count_ = 0;
  const std::atomic<bool>& failed_;
};

inline size_t team_size(const Parallel& parallel) {
  return std::min(kTeam, std::max<size_t>(1, parallel.threads));
}

// body(member) on every thread, for bodies of up to Stages stages. What one lacks of memory is thrown
// here, once all have ended.
template <size_t Stages, typename F>
void together(const Parallel& parallel, F&& body) {
  struct Work {
    std::remove_reference_t<F>& body;
    const Parallel& parallel;
    size_t threads;
    std::atomic<bool> failed{false};
    Stage stages[Stages];

    Work(std::remove_reference_t<F>& body, const Parallel& parallel)
        : body(body), parallel(parallel), threads(team_size(parallel)) {
      for (Stage& stage : stages) stage.start(threads);
    }
  } work(body, parallel);
  const auto run = [](void* data, size_t number) {
    Work& work = *static_cast<Work*>(data);
    try {
      work.body(Member(number, work.parallel, work.threads, work.stages, work.failed));
    } catch (const std::bad_alloc&) {
      work.failed = true;
    }
  };
  if (work.threads == 1)
    run(&work, 0);
  else
    parallel.run(parallel.self, run, work.threads, &work);
  if (work.failed) throw std::bad_alloc();
}

}  // namespace vlmc
