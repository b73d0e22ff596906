// Plain loops.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"

namespace vlmc {

bool supported() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

void linear8(const float* x, size_t m, size_t k, size_t n, const int8_t* w, const float* scales,
             const float* bias, float* y, const Parallel& parallel) {
  struct Job {
    const float* x;
    size_t k, n;
    const int8_t* w;
    const float *scales, *bias;
    float* y;
    std::vector<int8_t> codes;
  } job{x, k, n, w, scales, bias, y, std::vector<int8_t>(m * k)};
  parallel(
      [](void* data, size_t row) {
        Job& job = *static_cast<Job*>(data);
        const float* x = job.x + row * job.k;
        int8_t* codes = job.codes.data() + row * job.k;
        float largest = 0;
        for (size_t i = 0; i < job.k; ++i) largest = std::max(largest, std::fabs(x[i]));
        const float scale = (largest + 1e-12f) / 127.0f;
        for (size_t i = 0; i < job.k; ++i) {
          codes[i] = static_cast<int8_t>(
              std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f));
        }
        for (size_t j = 0; j < job.n; ++j) {
          int32_t sum = 0;
          for (size_t i = 0; i < job.k; ++i) sum += codes[i] * job.w[i * job.n + j];
          job.y[row * job.n + j] = static_cast<float>(sum) * scale * job.scales[j] +
                                   (job.bias ? job.bias[j] : 0.0f);
        }
      },
      m, &job);
}

void linear_blocks(const float* x, size_t m, size_t k, size_t n, int bits, size_t block,
                   const uint8_t* w, const float* scales, const uint8_t* zero_points,
                   const float* bias, float* y, const Parallel& parallel) {
  struct Job {
    const float* x;
    size_t m, k, n;
    int bits;
    size_t block;
    const uint8_t* w;
    const float* scales;
    const uint8_t* zero_points;
    const float* bias;
    float* y;
  } job{x, m, k, n, bits, block, w, scales, zero_points, bias, y};
  parallel(
      [](void* data, size_t j) {
        const Job& job = *static_cast<Job*>(data);
        const size_t blocks = job.k / job.block;
        for (size_t row = 0; row < job.m; ++row) {
          float sum = job.bias ? job.bias[j] : 0.0f;
          for (size_t i = 0; i < job.k; ++i) {
            const size_t at = j * job.k + i, b = i / job.block;
            int zero = job.bits == 8 ? 128 : 8;
            if (job.zero_points) {
              zero = job.zero_points[j * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
            }
            const int code = job.bits == 8 ? job.w[at] : job.w[at / 2] >> (at % 2 * 4) & 15;
            sum += job.x[row * job.k + i] * static_cast<float>(code - zero) *
                   job.scales[j * blocks + b];
          }
          job.y[row * job.n + j] = sum;
        }
      },
      n, &job);
}

}  // namespace vlmc
