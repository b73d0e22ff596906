// A sum of two values and its norm.
#include "norm.h"

#include <algorithm>

#include "scratch.h"

namespace vlmc {

void add_norm(const Norm& norm, size_t m, size_t k, float* normed, const Parallel& parallel) {
  constexpr size_t kRows = 16;  // of a task
  each(parallel, (m + kRows - 1) / kRows, [&](size_t task) {
    for (size_t i = task * kRows; i < std::min(m, (task + 1) * kRows); ++i)
      norm_row(norm, i, k, normed + i * k);
  });
}

}  // namespace vlmc
