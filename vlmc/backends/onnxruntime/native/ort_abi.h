// What these kernels use of onnxruntime's C ABI, so that building needs no headers of onnxruntime.
//
// The ABI is a table of functions that only ever grows: a function keeps its slot in every later
// release. Slots and layouts below were read in onnxruntime_c_api.h (versions 1.24 to 1.29) and are
// exercised by tests/backends/test_native.py on the release that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

// The newest functions used came with 1.24.
constexpr uint32_t kApiVersion = 24;
// The layout of CustomOp below is that of 1.17; onnxruntime reads no field added later.
constexpr uint32_t kCustomOpVersion = 17;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10
};
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kDefaultMemory = 0 };

struct CustomOpDomain;
struct EngineContext;  // what op.h's KernelContext and KernelInfo stand on
struct EngineInfo;
struct KeyValuePairs;
struct SessionOptions;
struct ShapeContext;
struct Status;  // null: success
struct TypeShape;
struct Value;
struct CustomOp;

using Slot = void (*)();

struct Api {
  Status* (*CreateStatus)(ErrorCode code, const char* message);
  Slot from_1[25];
  Status* (*CreateCustomOpDomain)(const char* domain, CustomOpDomain** out);
  Status* (*CustomOpDomain_Add)(CustomOpDomain* domain, const CustomOp* op);
  Status* (*AddCustomOpDomain)(SessionOptions* options, CustomOpDomain* domain);
  Slot from_29[22];
  Status* (*GetTensorMutableData)(Value* value, void** out);
  Slot from_52[5];
  Status* (*CreateTensorTypeAndShapeInfo)(TypeShape** out);
  Status* (*SetTensorElementType)(TypeShape* info, ElementType type);
  Status* (*SetDimensions)(TypeShape* info, const int64_t* sizes, size_t count);
  Slot from_60[1];
  Status* (*GetDimensionsCount)(const TypeShape* info, size_t* out);
  Status* (*GetDimensions)(const TypeShape* info, int64_t* sizes, size_t count);
  Status* (*GetSymbolicDimensions)(const TypeShape* info, const char** names, size_t count);
  Slot from_64[1];
  Status* (*GetTensorTypeAndShape)(const Value* value, TypeShape** out);
  Slot from_66[19];
  Status* (*KernelInfoGetAttribute_float)(const EngineInfo* info, const char* name, float* out);
  Status* (*KernelInfoGetAttribute_int64)(const EngineInfo* info, const char* name, int64_t* out);
  Status* (*KernelInfoGetAttribute_string)(const EngineInfo* info, const char* name, char* out,
                                           size_t* size);
  Status* (*KernelContext_GetInputCount)(const EngineContext* context, size_t* out);
  Slot from_89[1];
  Status* (*KernelContext_GetInput)(const EngineContext* context, size_t index, const Value** out);
  Status* (*KernelContext_GetOutput)(EngineContext* context, size_t index, const int64_t* sizes,
                                     size_t count, Value** out);
  Slot from_92[7];
  void (*ReleaseTensorTypeAndShapeInfo)(TypeShape* info);
  Slot from_100[149];
  Status* (*KernelInfoGetConstantInput_tensor)(const EngineInfo* info, size_t index,
                                               int* is_constant, const Value** out);
  Slot from_250[18];
  Status* (*ShapeInferContext_GetInputTypeShape)(const ShapeContext* context, size_t index,
                                                 TypeShape** out);
  Slot from_269[1];
  Status* (*ShapeInferContext_SetOutputTypeShape)(const ShapeContext* context, size_t index,
                                                  const TypeShape* info);
  Status* (*SetSymbolicDimensions)(TypeShape* info, const char** names, size_t count);
  Slot from_272[2];
  Status* (*KernelContext_ParallelFor)(const EngineContext* context,
                                       void (*task)(void* data, size_t index), size_t tasks,
                                       size_t batches, void* data);
  Slot from_275[22];
  const char* (*GetKeyValue)(const KeyValuePairs* pairs, const char* key);
  Slot from_298[2];
  void (*ReleaseKeyValuePairs)(KeyValuePairs* pairs);
  Slot from_301[90];
  Status* (*KernelInfo_GetConfigEntries)(const EngineInfo* info, KeyValuePairs** out);
  Slot from_392[22];
  Status* (*GetTensorElementTypeAndShapeDataReference)(const Value* value, ElementType* type,
                                                       const int64_t** sizes, size_t* count);
};

#define VLMC_SLOT(name, index) \
  static_assert(offsetof(Api, name) == (index) * sizeof(Slot), #name " has slot " #index)
VLMC_SLOT(CreateStatus, 0);
VLMC_SLOT(CreateCustomOpDomain, 26);
VLMC_SLOT(CustomOpDomain_Add, 27);
VLMC_SLOT(AddCustomOpDomain, 28);
VLMC_SLOT(GetTensorMutableData, 51);
VLMC_SLOT(CreateTensorTypeAndShapeInfo, 57);
VLMC_SLOT(SetTensorElementType, 58);
VLMC_SLOT(SetDimensions, 59);
VLMC_SLOT(GetDimensionsCount, 61);
VLMC_SLOT(GetDimensions, 62);
VLMC_SLOT(GetSymbolicDimensions, 63);
VLMC_SLOT(GetTensorTypeAndShape, 65);
VLMC_SLOT(KernelInfoGetAttribute_float, 85);
VLMC_SLOT(KernelInfoGetAttribute_int64, 86);
VLMC_SLOT(KernelInfoGetAttribute_string, 87);
VLMC_SLOT(KernelContext_GetInputCount, 88);
VLMC_SLOT(KernelContext_GetInput, 90);
VLMC_SLOT(KernelContext_GetOutput, 91);
VLMC_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
VLMC_SLOT(KernelInfoGetConstantInput_tensor, 249);
VLMC_SLOT(ShapeInferContext_GetInputTypeShape, 268);
VLMC_SLOT(ShapeInferContext_SetOutputTypeShape, 270);
VLMC_SLOT(SetSymbolicDimensions, 271);
VLMC_SLOT(KernelContext_ParallelFor, 274);
VLMC_SLOT(GetKeyValue, 297);
VLMC_SLOT(ReleaseKeyValuePairs, 300);
VLMC_SLOT(KernelInfo_GetConfigEntries, 391);
VLMC_SLOT(GetTensorElementTypeAndShapeDataReference, 414);
#undef VLMC_SLOT

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null: older than the version asked for
  const char* (*GetVersionString)();
};

// One operator: its schema and its kernel, as callbacks.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const EngineInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void* kernel, EngineContext*);
  void (*KernelDestroy)(void* kernel);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t index);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const EngineInfo*, void** kernel);
  Status* (*KernelComputeV2)(void* kernel, EngineContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};
static_assert(offsetof(CustomOp, CreateKernelV2) == 17 * sizeof(Slot), "as in 1.17");
static_assert(sizeof(CustomOp) == 22 * sizeof(Slot), "as in 1.17");

}  // namespace ort
