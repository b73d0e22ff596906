// What the operators ask of onnxruntime: tensors, attributes, threads; errors as exceptions.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ort_abi.h"

namespace ort {

inline const Api* api = nullptr;  // one table for the process, set by RegisterCustomOps

// What onnxruntime reports travels as an exception, so that a sequence of calls reads as one.
struct Failed {
  Status* status;
};

inline void check(Status* status) {
  if (status) throw Failed{status};
}

// Runs at the border to onnxruntime, which takes a status and no exception.
template <class Function>
Status* guarded(Function function) {
  try {
    function();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::invalid_argument& error) {
    return api->CreateStatus(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return api->CreateStatus(kFail, error.what());
  }
}

// Sizes of a tensor, where they are: a decode step asks for some of each of its hundreds of tensors.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(sizes.begin(), sizes.size()) {}
  Shape(const int64_t* sizes, size_t count) : count_(count) {
    if (count > kMost) throw std::invalid_argument("a tensor has more than eight axes");
    std::copy(sizes, sizes + count, sizes_);
  }

  size_t size() const { return count_; }
  bool empty() const { return count_ == 0; }
  const int64_t* data() const { return sizes_; }
  const int64_t* begin() const { return sizes_; }
  const int64_t* end() const { return sizes_ + count_; }
  int64_t operator[](size_t i) const { return sizes_[i]; }
  int64_t& back() { return sizes_[count_ - 1]; }
  int64_t back() const { return sizes_[count_ - 1]; }
  bool operator==(const Shape& other) const {
    return count_ == other.count_ && std::equal(begin(), end(), other.begin());
  }
  bool operator!=(const Shape& other) const { return !(*this == other); }

 private:
  static constexpr size_t kMost = 8;
  size_t count_ = 0;
  int64_t sizes_[kMost];
};

inline std::string text(const Shape& shape) {
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
  TypeShape* it = nullptr;
  ~Info() {
    if (it) api->ReleaseTensorTypeAndShapeInfo(it);
  }
};

// What is known of a shape before anything runs; names are those of sizes that are not.
struct Sizes {
  std::vector<int64_t> values;
  std::vector<const char*> names;

  explicit Sizes(const TypeShape* shape) {
    size_t rank = 0;
    check(api->GetDimensionsCount(shape, &rank));
    values.resize(rank);
    names.resize(rank);
    check(api->GetDimensions(shape, values.data(), rank));
    check(api->GetSymbolicDimensions(shape, names.data(), rank));
  }

  // Whether it can be given to an output. A size with neither value nor name can't be said, and a
  // name made up could be another's; a shape that is not known looks like a scalar's.
  bool known() const {
    for (size_t i = 0; i < values.size(); ++i) {
      if (values[i] < 0 && !*names[i]) return false;
    }
    return !values.empty();
  }
};

inline Tensor tensor_of(const Value* value) {
  Tensor tensor;
  ElementType type;
  const int64_t* sizes = nullptr;
  size_t rank = 0;
  check(api->GetTensorElementTypeAndShapeDataReference(value, &type, &sizes, &rank));
  tensor.shape = {sizes, rank};
  check(api->GetTensorMutableData(const_cast<Value*>(value), &tensor.data));
  return tensor;
}

// What a kernel is made of: a node, or one step of a Chain, which has inputs of its node's.
struct KernelInfo {
  const EngineInfo* node;
  std::string prefix;           // of its attributes' names
  const int* inputs = nullptr;  // of the step, as numbers of the node's; -1 for others and none

  int count = 0;                // of the step's inputs

  // Where an input is among the node's, -1 where it is none of them.
  int input(size_t index) const {
    if (!inputs) return static_cast<int>(index);
    return static_cast<int>(index) < count ? inputs[index] : -1;
  }
};

// The tensors of a call: a node's, or those of one step of a Chain.
struct Step;
struct KernelContext {
  EngineContext* node;
  Step* step = nullptr;
};
Tensor input(const Step& step, size_t index);
void* output(Step& step, size_t index, const Shape& shape);

inline Tensor input(const KernelContext* context, size_t index) {
  if (context->step) return input(*context->step, index);
  size_t count = 0;
  check(api->KernelContext_GetInputCount(context->node, &count));
  const Value* value = nullptr;
  if (index < count) check(api->KernelContext_GetInput(context->node, index, &value));
  return value ? tensor_of(value) : Tensor{};
}

// The inputs of a node, those that never change looked up once.
template <size_t Count>
class Inputs {
 public:
  explicit Inputs(const KernelInfo* info) {
    for (size_t i = 0; i < Count; ++i) {
      const int at = info->input(i);
      if (at < 0) continue;
      int constant = 0;
      const Value* value = nullptr;
      check(api->KernelInfoGetConstantInput_tensor(info->node, at, &constant, &value));
      if (constant) constants_[i] = tensor_of(value);
    }
  }

  Tensor operator()(const KernelContext* context, size_t index) const {
    return constants_[index].data ? constants_[index] : input(context, index);
  }

  // No data where it may change.
  const Tensor& constant(size_t index) const { return constants_[index]; }

 private:
  Tensor constants_[Count];
};

inline void expect(const char* name, const Tensor& tensor, const Shape& shape) {
  if (tensor.shape != shape) {
    throw std::invalid_argument(std::string(name) + " is " + text(tensor.shape) + ", not " +
                                text(shape));
  }
}

inline int64_t attribute(const KernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api->KernelInfoGetAttribute_int64(info->node, (info->prefix + name).c_str(), &value));
  return value;
}

inline float float_attribute(const KernelInfo* info, const char* name) {
  float value = 0;
  check(api->KernelInfoGetAttribute_float(info->node, (info->prefix + name).c_str(), &value));
  return value;
}

// The session's number of threads is told by its entry vlmc.threads: no function gives it.
inline size_t threads(const KernelInfo* info) {
  KeyValuePairs* pairs = nullptr;
  check(api->KernelInfo_GetConfigEntries(info->node, &pairs));
  const char* value = api->GetKeyValue(pairs, "vlmc.threads");
  size_t count = value ? std::strtoul(value, nullptr, 10) : 0;
  api->ReleaseKeyValuePairs(pairs);
  if (!count) count = std::thread::hardware_concurrency();
  return count ? count : 1;
}

}  // namespace ort
