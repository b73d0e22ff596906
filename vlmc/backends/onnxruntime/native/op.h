// What every operator of vlmc.kernels shares: its declaration, its outputs, its session's threads.
#pragma once

#include <iterator>

#include "kernels.h"
#include "ort_calls.h"
#include "upcoming.h"

namespace ort {

struct Input {
  ElementType type;
  Characteristic characteristic = kRequired;
};

// Memory of an output of that shape: the caller's own where it bound some.
inline void* output(KernelContext* context, size_t index, const Shape& shape) {
  if (context->step) return output(*context->step, index, shape);
  Value* value = nullptr;
  check(api->KernelContext_GetOutput(context->node, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api->GetTensorMutableData(value, &data));
  return data;
}

// Output `index` is like input `of`.
inline void infer_like(const ShapeContext* context, size_t of, size_t index) {
  TypeShape* shape = nullptr;  // stays the context's own
  check(api->ShapeInferContext_GetInputTypeShape(context, of, &shape));
  if (Sizes(shape).known()) check(api->ShapeInferContext_SetOutputTypeShape(context, index, shape));
}

const vlmc::Parallel& threads_of(const Step& step);

// The threads of a node's session, lent to a kernel for one call.
struct Borrowed {
  KernelContext* context;
  Status* failed = nullptr;

  template <class Compute>
  void run(size_t threads, Compute compute) {
    if (context->step) return compute(threads_of(*context->step));
    compute(vlmc::Parallel{&each, this, threads});
    check(failed);
  }

  static void each(void* self, void (*task)(void*, size_t), size_t tasks, void* data) {
    Borrowed& borrowed = *static_cast<Borrowed*>(self);
    if (borrowed.failed) return;
    if (tasks == 1) return task(data, 0);
    // No limit on batches: a thread takes the next task as soon as it is done with one.
    borrowed.failed = api->KernelContext_ParallelFor(borrowed.context->node, task, tasks, 0, data);
  }
};

// An operator, as onnxruntime is told of it and as a step of a Chain.
struct Operator : CustomOp {
  void* (*make)(const KernelInfo* info);
  void (*compute)(const void* kernel, KernelContext* context);
  vlmc::Weights (*weights)(const void* kernel);  // of nothing where it has none
};

template <class Op>
auto weights_of(const Op& op, int) -> decltype(op.weights()) {
  return op.weights();
}
template <class Op>
vlmc::Weights weights_of(const Op&, long) {
  return {};
}

// What is the same of all: how a kernel is made, run and ended.
template <class Op>
void complete(CustomOp& op) {
  op.version = kCustomOpVersion;
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return kDefaultMemory; };
  op.GetStartVersion = [](const CustomOp*) { return vlmc::kInterface; };
  op.GetEndVersion = [](const CustomOp*) { return vlmc::kInterface; };
  op.CreateKernelV2 = [](const CustomOp*, const Api*, const EngineInfo* node, void** kernel) {
    return guarded([&] {
      const KernelInfo info{node, ""};
      *kernel = new Op(&info);
    });
  };
  op.KernelComputeV2 = [](void* kernel, EngineContext* node) {
    return guarded([&] {
      KernelContext context{node};
      static_cast<const Op*>(kernel)->compute(&context);
    });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
}

template <class Op>
Operator declared() {
  Operator op{};
  op.make = [](const KernelInfo* info) -> void* { return new Op(info); };
  op.compute = [](const void* kernel, KernelContext* context) {
    static_cast<const Op*>(kernel)->compute(context);
  };
  op.weights = [](const void* kernel) { return weights_of(*static_cast<const Op*>(kernel), 0); };
  complete<Op>(op);
  op.GetName = [](const CustomOp*) { return Op::name; };
  op.GetInputType = [](const CustomOp*, size_t index) { return Op::inputs[index].type; };
  op.GetInputTypeCount = [](const CustomOp*) { return std::size(Op::inputs); };
  op.GetOutputType = [](const CustomOp*, size_t index) { return Op::outputs[index]; };
  op.GetOutputTypeCount = [](const CustomOp*) { return std::size(Op::outputs); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t index) {
    return Op::inputs[index].characteristic;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return kRequired; };
  op.InferOutputShapeFn = [](const CustomOp*, ShapeContext* context) {
    return guarded([&] { Op::infer(context); });
  };
  return op;
}

// One function for each file of operators; they live as long as the process.
const Operator* const* linear_ops(size_t* count);
const Operator* const* attention_ops(size_t* count);
const Operator* const* table_ops(size_t* count);
const CustomOp* chain_op();

}  // namespace ort
