// The kernels as operators of onnxruntime, domain vlmc.kernels: shapes checked, threads borrowed.
#include "kernels.h"
#include "ort_calls.h"

#define VLMC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace ort;

// One product: x and y of a node, and the threads of its session.
struct Call {
  KernelContext* context;
  Tensor x;
  size_t rows;
  float* y;
  Status* failed = nullptr;

  Call(KernelContext* context, int64_t k, int64_t n) : context(context), x(input(context, 0)) {
    if (k <= 0 || n <= 0 || x.shape.empty() || x.shape.back() != k) {
      throw std::invalid_argument("x is " + text(x.shape) + ", the weights are for " +
                                  std::to_string(k) + " -> " + std::to_string(n));
    }
    rows = 1;
    Shape shape = x.shape;
    shape.back() = n;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= static_cast<size_t>(shape[i]);
    Value* value = nullptr;
    check(api->KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(api->GetTensorMutableData(value, &data));
    y = static_cast<float*>(data);
  }

  template <class Compute>
  void run(size_t threads, Compute compute) {
    if (rows) compute(vlmc::Parallel{&each, this, threads});
    check(failed);
  }

  static void each(void* self, void (*task)(void*, size_t), size_t tasks, void* data) {
    Call& call = *static_cast<Call*>(self);
    if (call.failed) return;
    if (tasks == 1) return task(data, 0);
    // No limit on batches: a thread takes the next task as soon as it is done with one.
    call.failed = api->KernelContext_ParallelFor(call.context, task, tasks, 0, data);
  }
};

struct Input {
  ElementType type;
  Characteristic characteristic = kRequired;
};

struct Linear8 {
  static constexpr const char* name = "Linear8";
  static constexpr Input inputs[] = {{kFloat}, {kInt8}, {kFloat}, {kFloat, kOptional}};

  explicit Linear8(const KernelInfo* info) : threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), bias = input(context, 3);
    if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [K, N]");
    const int64_t k = w.shape[0], n = w.shape[1];
    expect("w_scales", scales, {n});
    if (bias.data) expect("bias", bias, {n});
    Call call(context, k, n);
    call.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear8(call.x.as<float>(), call.rows, static_cast<size_t>(k), static_cast<size_t>(n),
                    w.as<int8_t>(), scales.as<float>(), bias.as<float>(), call.y, parallel);
    });
  }

  size_t threads;
};

struct LinearBlocks {
  static constexpr const char* name = "LinearBlocks";
  static constexpr Input inputs[] = {
      {kFloat}, {kUint8}, {kFloat}, {kUint8, kOptional}, {kFloat, kOptional}};

  explicit LinearBlocks(const KernelInfo* info)
      : threads(ort::threads(info)),
        k(attribute(info, "K")),
        n(attribute(info, "N")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {
    if (k <= 0 || n <= 0 || block <= 0 || k % block || block % 2 || (bits != 4 && bits != 8)) {
      throw std::invalid_argument("LinearBlocks takes 4 or 8 bits in blocks that fill K");
    }
  }

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), zeros = input(context, 3),
                 bias = input(context, 4);
    const int64_t blocks = k / block;
    if (zeros.data && bits == 8) throw std::invalid_argument("8 bits take no zero_points");
    expect("w", w, {n, blocks, block * bits / 8});
    expect("scales", scales, {n, blocks});
    if (zeros.data) expect("zero_points", zeros, {n, (blocks + 1) / 2});
    if (bias.data) expect("bias", bias, {n});
    Call call(context, k, n);
    call.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_blocks(call.x.as<float>(), call.rows, static_cast<size_t>(k),
                          static_cast<size_t>(n), static_cast<int>(bits),
                          static_cast<size_t>(block), w.as<uint8_t>(), scales.as<float>(),
                          zeros.as<uint8_t>(), bias.as<float>(), call.y, parallel);
    });
  }

  size_t threads;
  int64_t k, n, bits, block;
};

// y has x's shape with its last size replaced by the number of scales' rows.
void infer(const ShapeContext* context) {
  TypeShape *x = nullptr, *scales = nullptr;  // both stay the context's own
  check(api->ShapeInferContext_GetInputTypeShape(context, 0, &x));
  check(api->ShapeInferContext_GetInputTypeShape(context, 2, &scales));
  size_t rank = 0, scales_rank = 0;
  check(api->GetDimensionsCount(x, &rank));
  check(api->GetDimensionsCount(scales, &scales_rank));
  if (!rank || !scales_rank) return;  // a shape that is not known looks like a scalar's
  Shape sizes(rank), last(scales_rank);
  std::vector<const char*> names(rank), last_names(scales_rank);
  check(api->GetDimensions(x, sizes.data(), rank));
  check(api->GetSymbolicDimensions(x, names.data(), rank));
  check(api->GetDimensions(scales, last.data(), scales_rank));
  check(api->GetSymbolicDimensions(scales, last_names.data(), scales_rank));
  sizes.back() = last[0];
  names.back() = last_names[0];
  for (size_t i = 0; i < rank; ++i) {
    // A size with neither value nor name can't be said, and a name made up could be another's.
    if (sizes[i] < 0 && !*names[i]) return;
  }
  Info y;
  check(api->CreateTensorTypeAndShapeInfo(&y.it));
  check(api->SetTensorElementType(y.it, kFloat));
  check(api->SetDimensions(y.it, sizes.data(), rank));
  check(api->SetSymbolicDimensions(y.it, names.data(), rank));
  check(api->ShapeInferContext_SetOutputTypeShape(context, 0, y.it));
}

template <class Op>
CustomOp declared() {
  CustomOp op{};
  op.version = kCustomOpVersion;
  op.GetName = [](const CustomOp*) { return Op::name; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const CustomOp*, size_t index) { return Op::inputs[index].type; };
  op.GetInputTypeCount = [](const CustomOp*) { return std::size(Op::inputs); };
  op.GetOutputType = [](const CustomOp*, size_t) { return kFloat; };
  op.GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
  op.GetInputCharacteristic = [](const CustomOp*, size_t index) {
    return Op::inputs[index].characteristic;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.CreateKernelV2 = [](const CustomOp*, const Api*, const KernelInfo* info,
                         void** kernel) { return guarded([&] { *kernel = new Op(info); }); };
  op.KernelComputeV2 = [](void* kernel, KernelContext* context) {
    return guarded([&] { static_cast<const Op*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
  op.InferOutputShapeFn = [](const CustomOp*, ShapeContext* context) {
    return guarded([&] { infer(context); });
  };
  return op;
}

// Sessions point to the domain for as long as they live, so it is made once and stays.
CustomOpDomain* domain() {
  static const CustomOp linear8 = declared<Linear8>();
  static const CustomOp linear_blocks = declared<LinearBlocks>();
  static CustomOpDomain* const made = [] {
    CustomOpDomain* domain = nullptr;
    check(api->CreateCustomOpDomain("vlmc.kernels", &domain));
    check(api->CustomOpDomain_Add(domain, &linear8));
    check(api->CustomOpDomain_Add(domain, &linear_blocks));
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

VLMC_EXPORT void vlmc_linear8(const float* x, size_t m, size_t k, size_t n, const int8_t* w,
                              const float* scales, const float* bias, float* y) {
  vlmc::linear8(x, m, k, n, w, scales, bias, y, serial());
}

VLMC_EXPORT void vlmc_linear_blocks(const float* x, size_t m, size_t k, size_t n, int bits,
                                    size_t block, const uint8_t* w, const float* scales,
                                    const uint8_t* zero_points, const float* bias, float* y) {
  vlmc::linear_blocks(x, m, k, n, bits, block, w, scales, zero_points, bias, y, serial());
}
