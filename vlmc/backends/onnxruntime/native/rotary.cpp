// Rotary embeddings of many tokens.
#include "rotary.h"

#include <algorithm>

#include "kernels.h"
#include "scratch.h"

namespace vlmc {

void rotate(const float* x, size_t tokens, size_t heads, size_t size, const Turn& by, float* out,
            const Parallel& parallel) {
  constexpr size_t kTokens = 16;  // of a task
  each(parallel, (tokens + kTokens - 1) / kTokens, [&](size_t task) {
    for (size_t t = task * kTokens; t < std::min(tokens, (task + 1) * kTokens); ++t)
      turn(x + t * heads * size, heads, size, by.half, by.cos + t * by.half, by.sin + t * by.half,
           out + t * heads * size);
  });
}

}  // namespace vlmc
