// The kernels as operators of onnxruntime, domain vlmc.kernels: shapes checked, threads borrowed.
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "ort_abi.h"

#define VLMC_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

const ort::Api* api = nullptr;  // one table for the process, set by RegisterCustomOps

// Throws what onnxruntime reports: RAII instead of a check after every call.
struct Failed {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status) throw Failed{status};
}

// Runs at the border to onnxruntime, which takes a status and no exception.
template <class Function>
ort::Status* guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::invalid_argument& error) {
    return api->CreateStatus(ort::kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api->CreateStatus(ort::kFail, error.what());
  }
}

using Shape = std::vector<int64_t>;

std::string text(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

// A tensor that a kernel is given; no data where an optional one is left out.
struct Tensor {
  void* data = nullptr;
  Shape shape;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

struct Info {
  ort::TypeShape* it = nullptr;
  ~Info() {
    if (it) api->ReleaseTensorTypeAndShapeInfo(it);
  }
};

Tensor input(const ort::KernelContext* context, size_t index) {
  size_t count = 0;
  check(api->KernelContext_GetInputCount(context, &count));
  const ort::Value* value = nullptr;
  if (index < count) check(api->KernelContext_GetInput(context, index, &value));
  if (!value) return {};
  Tensor tensor;
  Info info;
  check(api->GetTensorTypeAndShape(value, &info.it));
  size_t rank = 0;
  check(api->GetDimensionsCount(info.it, &rank));
  tensor.shape.resize(rank);
  check(api->GetDimensions(info.it, tensor.shape.data(), rank));
  check(api->GetTensorMutableData(const_cast<ort::Value*>(value), &tensor.data));
  return tensor;
}

// Optional inputs that are left out have any shape.
void expect(const char* name, const Tensor& tensor, const Shape& shape) {
  if (tensor.data && tensor.shape != shape) {
    throw std::invalid_argument(std::string(name) + " is " + text(tensor.shape) + ", not " +
                                text(shape));
  }
}

int64_t attribute(const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api->KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

// The session's number of threads is told by its entry vlmc.threads: no function gives it.
size_t threads(const ort::KernelInfo* info) {
  ort::KeyValuePairs* pairs = nullptr;
  check(api->KernelInfo_GetConfigEntries(info, &pairs));
  const char* value = api->GetKeyValue(pairs, "vlmc.threads");
  size_t count = value ? std::strtoul(value, nullptr, 10) : 0;
  api->ReleaseKeyValuePairs(pairs);
  if (!count) count = std::thread::hardware_concurrency();
  return count ? count : 1;
}

// One product: x and y of a node, and the threads of its session.
struct Call {
  ort::KernelContext* context;
  Tensor x;
  size_t rows, columns;
  float* y;
  ort::Status* failed = nullptr;

  Call(ort::KernelContext* context, int64_t k, int64_t n) : context(context), x(input(context, 0)) {
    if (k <= 0 || n <= 0 || x.shape.empty() || x.shape.back() != k) {
      throw std::invalid_argument("x is " + text(x.shape) + ", the weights are for " +
                                  std::to_string(k) + " -> " + std::to_string(n));
    }
    rows = 1;
    Shape shape = x.shape;
    shape.back() = n;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= static_cast<size_t>(shape[i]);
    ort::Value* value = nullptr;
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
    if (tasks == 1) return task(data, 0);
    // No limit on batches: a thread takes the next task as soon as it is done with one.
    if (ort::Status* status =
            api->KernelContext_ParallelFor(call.context, task, tasks, 0, data)) {
      if (call.failed) api->ReleaseStatus(call.failed);
      call.failed = status;
    }
  }
};

struct Input {
  ort::ElementType type;
  ort::Characteristic characteristic = ort::kRequired;
};

struct Linear8 {
  static constexpr const char* name = "Linear8";
  static constexpr Input inputs[] = {
      {ort::kFloat}, {ort::kInt8}, {ort::kFloat}, {ort::kFloat, ort::kOptional}};

  explicit Linear8(const ort::KernelInfo* info) : threads(::threads(info)) {}

  void compute(ort::KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), bias = input(context, 3);
    if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [K, N]");
    const int64_t k = w.shape[0], n = w.shape[1];
    expect("w_scales", scales, {n});
    expect("bias", bias, {n});
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
  static constexpr Input inputs[] = {{ort::kFloat},
                                     {ort::kUint8},
                                     {ort::kFloat},
                                     {ort::kUint8, ort::kOptional},
                                     {ort::kFloat, ort::kOptional}};

  explicit LinearBlocks(const ort::KernelInfo* info)
      : threads(::threads(info)),
        k(attribute(info, "K")),
        n(attribute(info, "N")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {
    if (k <= 0 || n <= 0 || block <= 0 || k % block || block % 2 || (bits != 4 && bits != 8)) {
      throw std::invalid_argument("LinearBlocks takes 4 or 8 bits in blocks that fill K");
    }
  }

  void compute(ort::KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), zeros = input(context, 3),
                 bias = input(context, 4);
    const int64_t blocks = k / block;
    if (zeros.data && bits == 8) throw std::invalid_argument("8 bits take no zero_points");
    expect("w", w, {n, blocks, block * bits / 8});
    expect("scales", scales, {n, blocks});
    expect("zero_points", zeros, {n, (blocks + 1) / 2});
    expect("bias", bias, {n});
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
void infer(const ort::ShapeContext* context) {
  ort::TypeShape *x = nullptr, *scales = nullptr;  // both stay the context's own
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
  check(api->SetTensorElementType(y.it, ort::kFloat));
  check(api->SetDimensions(y.it, sizes.data(), rank));
  check(api->SetSymbolicDimensions(y.it, names.data(), rank));
  check(api->ShapeInferContext_SetOutputTypeShape(context, 0, y.it));
}

template <class Op>
ort::CustomOp declared() {
  ort::CustomOp op{};
  op.version = ort::kCustomOpVersion;
  op.GetName = [](const ort::CustomOp*) { return Op::name; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = [](const ort::CustomOp*, size_t index) { return Op::inputs[index].type; };
  op.GetInputTypeCount = [](const ort::CustomOp*) { return std::size(Op::inputs); };
  op.GetOutputType = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t index) {
    return Op::inputs[index].characteristic;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 1; };
  op.CreateKernelV2 = [](const ort::CustomOp*, const ort::Api*, const ort::KernelInfo* info,
                         void** kernel) { return guarded([&] { *kernel = new Op(info); }); };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) {
    return guarded([&] { static_cast<const Op*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
  op.InferOutputShapeFn = [](const ort::CustomOp*, ort::ShapeContext* context) {
    return guarded([&] { infer(context); });
  };
  return op;
}

// Sessions point to the domain for as long as they live, so it is made once and stays.
ort::CustomOpDomain* domain() {
  static const ort::CustomOp linear8 = declared<Linear8>();
  static const ort::CustomOp linear_blocks = declared<LinearBlocks>();
  static ort::CustomOpDomain* const made = [] {
    ort::CustomOpDomain* domain = nullptr;
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
  api = base->GetApi(ort::kApiVersion);
  if (!api) {
    // Every release has slot 0 of the first table.
    return base->GetApi(1)->CreateStatus(ort::kFail, "the kernels need onnxruntime 1.24");
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
