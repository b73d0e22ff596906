// The arithmetic, apart from any engine: what ops.cpp and the tests call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vlmc {

// Raised with every change of an operator's meaning; vlmc/backends/onnxruntime/native/__init__.py
// refuses a library that was built from other sources.
constexpr int kInterface = 1;

// Runs task(data, 0) .. task(data, tasks - 1), each once, in any order, and waits for all of them.
// A task must not throw. threads: how many may run at a time, to choose the number of tasks by.
struct Parallel {
  void (*run)(void* self, void (*task)(void* data, size_t index), size_t tasks, void* data);
  void* self;
  size_t threads;

  void operator()(void (*task)(void* data, size_t index), size_t tasks, void* data) const {
    run(self, task, tasks, data);
  }
};

// Whether this CPU has the instructions that the functions below are made of.
bool supported();

// y[m, n] = x[m, k] w[k, n] + bias[n], all contiguous. A row of x is quantized to int8 with one
// scale, (largest magnitude + 1e-12) / 127; column j of w has the scale scales[j].
// bias may be null; k and n are positive. Throws std::bad_alloc.
void linear8(const float* x, size_t m, size_t k, size_t n, const int8_t* w, const float* scales,
             const float* bias, float* y, const Parallel& parallel);

// y[m, n] = x[m, k] w[n, k]^T + bias[n]; each row of w is cut into blocks with one scale each.
// bits 8: w[n, k / block, block], zero point 128, zero_points null.
// bits 4: w[n, k / block, block / 2], low nibble first; zero_points[n, ceil(k / block / 2)] packed
// likewise, or null for 8. block divides k. bias may be null. Throws std::bad_alloc.
void linear_blocks(const float* x, size_t m, size_t k, size_t n, int bits, size_t block,
                   const uint8_t* w, const float* scales, const uint8_t* zero_points,
                   const float* bias, float* y, const Parallel& parallel);

}  // namespace vlmc
