#pragma once
// Threads that stay between pieces of work: to wake them for each costs as much as a small product.
#include <immintrin.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <thread>
#include <type_traits>

#include "kernels.h"
#include "upcoming.h"

namespace vlmc {

// One piece of work at a time, given by one thread and done by all that are there.
class Held {
 public:
  explicit Held(size_t threads)
      : as_parallel_{&run, this, threads, threads == 2 ? &now_ : nullptr,
                     threads == 2 ? &after_ : nullptr} {}

  const Parallel& parallel() const { return as_parallel_; }

  // Takes part in every piece of work until there is none to come.
  void serve() {
    size_t had = 0;  // the last step whose work this thread had
    for (size_t turns = 0; !over_.load(std::memory_order_acquire);) {
      if (take()) {
        turns = 0, had = step_.load(std::memory_order_relaxed);
      } else if (++turns < kTurns) {
        wait(1, had == step_.load(std::memory_order_relaxed) ? after_ : now_);
      } else {
        std::this_thread::yield();
      }
    }
  }

  // A step begins: says what its work reads, and what the one behind it.
  void begin(const Weights* now, const Weights* after) {
    now_.store(now, std::memory_order_relaxed), after_.store(after, std::memory_order_relaxed);
    step_.store(step_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }

  void end() { over_.store(true, std::memory_order_release); }

 private:
  static constexpr size_t kTurns = 4096;

  static void run(void* self, void (*task)(void*, size_t), size_t tasks, void* data) {
    Held& held = *static_cast<Held*>(self);
    if (tasks == 1) return task(data, 0);
    held.task_ = task, held.data_ = data, held.tasks_ = tasks;
    held.done_.store(0, std::memory_order_relaxed);
    held.left_.store(tasks, std::memory_order_release);
    while (held.take()) continue;
    for (size_t turns = 0; held.done_.load(std::memory_order_acquire) < tasks; ++turns) {
      if (turns < kTurns)
        held.wait(0, held.after_);
      else
        std::this_thread::yield();
    }
  }

  // Of two threads it is known which of them reads which part.
  void wait(size_t number, const std::atomic<const Weights*>& next) const {
    upcoming().wait(as_parallel_.next ? next.load(std::memory_order_relaxed) : nullptr, number, 2);
  }

  // What a task is may change only while none is left and all are done.
  bool take() {
    size_t left = left_.load(std::memory_order_relaxed);
    do {
      if (!left) return false;
    } while (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acquire,
                                          std::memory_order_relaxed));
    task_(data_, tasks_ - left);
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  Parallel as_parallel_;
  void (*task_)(void*, size_t) = nullptr;
  void* data_ = nullptr;
  size_t tasks_ = 0;
  alignas(64) std::atomic<size_t> left_{0};
  alignas(64) std::atomic<size_t> done_{0};
  std::atomic<bool> over_{false};
  std::atomic<const Weights*> now_{nullptr}, after_{nullptr};
  std::atomic<size_t> step_{0};
};

// body(parallel, held) on one thread, while the others of `parallel` wait busily for the work it gives
// them. What it throws is thrown here.
template <typename F>
void hold(const Parallel& parallel, F&& body) {
  if (parallel.threads <= 1) {
    Held alone(1);
    return body(parallel, alone);
  }
  struct Work {
    Held held;
    std::remove_reference_t<F>& body;
    std::atomic<bool> led{false};
    std::exception_ptr thrown;

    Work(size_t threads, std::remove_reference_t<F>& body) : held(threads), body(body) {}
  } work(parallel.threads, body);
  // Who comes first leads, so that nothing waits for a thread that never comes.
  const auto task = [](void* data, size_t) {
    Work& work = *static_cast<Work*>(data);
    if (work.led.exchange(true)) return work.held.serve();
    try {
      work.body(work.held.parallel(), work.held);
    } catch (...) {
      work.thrown = std::current_exception();
    }
    work.held.end();
  };
  parallel.run(parallel.self, task, parallel.threads, &work);
  if (work.thrown) std::rethrow_exception(work.thrown);
}

}  // namespace vlmc
