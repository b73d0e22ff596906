// The library's interface: what onnxruntime calls, and what the tests do.
#include <utility>

#include "ahead.h"
#include "amx.h"
#include "op.h"

#define VLMC_EXPORT extern "C" __attribute__((visibility("default")))

bool vlmc::supported() {
#ifdef VLMC_AVX2
  return __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma");  // and float16, all of them
#else
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}

namespace {

using namespace ort;

// Sessions point to the domain for as long as they live, so it is made once and stays.
CustomOpDomain* domain() {
  static CustomOpDomain* const made = [] {
    CustomOpDomain* domain = nullptr;
    check(api->CreateCustomOpDomain("vlmc.kernels", &domain));
    for (const auto ops : {linear_ops, attention_ops, table_ops}) {
      size_t count = 0;
      const Operator* const* all = ops(&count);
      for (size_t i = 0; i < count; ++i) check(api->CustomOpDomain_Add(domain, all[i]));
    }
    check(api->CustomOpDomain_Add(domain, chain_op()));
    return domain;
  }();
  return made;
}

vlmc::Parallel serial() {
  return {[](void*, void (*task)(void*, size_t), size_t tasks, void* data) {
            for (size_t i = 0; i < tasks; ++i) task(data, i);
          },
          nullptr, 1};
}

}  // namespace

// Called by onnxruntime when a session's options are given this library.
VLMC_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  using namespace ort;
  api = base->GetApi(kApiVersion);
  if (!api) {
    // Every release has slot 0 of the first table.
    return base->GetApi(1)->CreateStatus(kFail, "the kernels need onnxruntime 1.24");
  }
  return guarded([&] {
    if (!vlmc::supported()) throw std::runtime_error("this CPU lacks what the kernels need");
    check(api->AddCustomOpDomain(options, domain()));
  });
}

// For tests and for the check before onnxruntime is given the library; one thread.
VLMC_EXPORT int vlmc_kernels_interface() { return vlmc::kInterface; }

VLMC_EXPORT int vlmc_kernels_supported() { return vlmc::supported(); }

VLMC_EXPORT int vlmc_kernels_tiles() { return vlmc::tiles(); }

#ifndef VLMC_AVX2
// Whether memory is read as Zen 3 to 5 like it, from now on; returns what was so before. For the tests.
VLMC_EXPORT int vlmc_kernels_zen(int is) { return std::exchange(vlmc::zen, is != 0); }
#endif

// For the build, where nothing is called but these three.
VLMC_EXPORT int vlmc_linear_bfloat16(const float* x, size_t m, size_t k, const uint16_t* w,
                                     size_t n, float* y, size_t pitch) {
  return vlmc::linear_bfloat16(x, m, k, w, n, y, pitch);
}

VLMC_EXPORT void vlmc_quantize_stored(const void* w, int bfloat16, size_t rows, size_t columns,
                                      size_t block, int panels, uint8_t* codes, uint16_t* scales,
                                      uint8_t* zero_points, double* loss) {
  vlmc::quantize_blocks(w, bfloat16, rows, columns, block, panels, codes, scales, zero_points,
                        nullptr, loss);
}

VLMC_EXPORT void vlmc_round_blocks(const float* w, size_t rows, size_t columns, size_t block,
                                   uint8_t* codes, uint16_t* scales, uint8_t* zero_points,
                                   double* loss, float* restored) {
  vlmc::quantize_blocks(w, false, rows, columns, block, true, codes, scales, zero_points, restored,
                        loss);
}

VLMC_EXPORT void vlmc_linear_panels(const float* x, size_t m, size_t k, size_t n, const int8_t* w,
                                    const float* scales, const float* bias, float* y) {
  const vlmc::Product product{w, scales, nullptr, bias, y, n};
  vlmc::linear_panels(x, m, k, &product, 1, vlmc::Gate::none, serial());
}

VLMC_EXPORT void vlmc_linear_blocks(const float* x, size_t m, size_t k, size_t n, int bits,
                                    size_t block, const uint8_t* w, const uint16_t* scales,
                                    const uint8_t* zero_points, const float* bias, float* y) {
  const vlmc::Product product{w, scales, zero_points, bias, y, n};
  vlmc::linear_blocks(x, m, k, bits, block, &product, 1, vlmc::Gate::none, serial());
}

VLMC_EXPORT void vlmc_linear_float(const float* x, size_t m, size_t k, size_t n, const void* w,
                                   int half, const float* bias, float* y) {
  const vlmc::Product product{w, nullptr, nullptr, bias, y, n};
  vlmc::linear_float(x, m, k, &product, 1, half, vlmc::Gate::none, serial());
}
