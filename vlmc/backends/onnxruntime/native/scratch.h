#pragma once
// Memory of a thread, and work for several.
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

#include "kernels.h"

namespace vlmc {

// Memory that grows and is kept: kernels follow each other with like sizes.
template <typename T>
class Scratch {
 public:
  T* at_least(size_t count) {
    if (count > size_) {
      data_.reset(static_cast<T*>(operator new(count * sizeof(T), std::align_val_t(64))));
      size_ = count;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// body(0) .. body(tasks - 1). What a task lacks of memory is thrown here, once all have ended:
// nothing may be thrown on a thread that is another's.
template <typename F>
void each(const Parallel& parallel, size_t tasks, F&& body) {
  if (tasks <= 1 || parallel.threads <= 1) {
    for (size_t i = 0; i < tasks; ++i) body(i);
    return;
  }
  struct Work {
    std::remove_reference_t<F>& body;
    std::atomic<bool> failed{false};
  } work{body};
  const auto run = [](void* data, size_t i) {
    Work& work = *static_cast<Work*>(data);
    try {
      work.body(i);
    } catch (const std::bad_alloc&) {
      work.failed = true;
    }
  };
  parallel.run(parallel.self, run, tasks, &work);
  if (work.failed) throw std::bad_alloc();
}

}  // namespace vlmc
