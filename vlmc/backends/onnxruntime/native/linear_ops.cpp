// Products with stored weights as operators of onnxruntime: shapes checked, threads borrowed.
#include "op.h"

namespace ort {
namespace {

// y has x's shape with its last size replaced by the rows of input Of.
template <size_t Of>
void infer_product(const ShapeContext* context) {
  TypeShape *x = nullptr, *rows = nullptr;  // both stay the context's own
  check(api->ShapeInferContext_GetInputTypeShape(context, 0, &x));
  check(api->ShapeInferContext_GetInputTypeShape(context, Of, &rows));
  Sizes sizes(x);
  const Sizes last(rows);
  if (sizes.values.empty() || last.values.empty()) return;
  sizes.values.back() = last.values[0];
  sizes.names.back() = last.names[0];
  if (!sizes.known()) return;
  const size_t rank = sizes.values.size();
  Info y;
  check(api->CreateTensorTypeAndShapeInfo(&y.it));
  check(api->SetTensorElementType(y.it, kFloat));
  check(api->SetDimensions(y.it, sizes.values.data(), rank));
  check(api->SetSymbolicDimensions(y.it, sizes.names.data(), rank));
  check(api->ShapeInferContext_SetOutputTypeShape(context, 0, y.it));
}

// One product: x and y of a node.
struct Product : Borrowed {
  Tensor x;
  size_t rows;
  float* y;

  Product(KernelContext* context, int64_t k, int64_t n) : Borrowed{context}, x(input(context, 0)) {
    if (k <= 0 || n <= 0 || x.shape.empty() || x.shape.back() != k) {
      throw std::invalid_argument("x is " + text(x.shape) + ", the weights are for " +
                                  std::to_string(k) + " -> " + std::to_string(n));
    }
    rows = 1;
    Shape shape = x.shape;
    shape.back() = n;
    for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= static_cast<size_t>(shape[i]);
    y = static_cast<float*>(output(context, 0, shape));
  }

  template <class Compute>
  void run(size_t threads, Compute compute) {
    if (rows) Borrowed::run(threads, compute);
  }
};

struct Linear8 {
  static constexpr const char* name = "Linear8";
  static constexpr Input inputs[] = {{kFloat}, {kInt8}, {kFloat}, {kFloat, kOptional}};
  static constexpr ElementType outputs[] = {kFloat};
  static constexpr auto infer = infer_product<2>;

  explicit Linear8(const KernelInfo* info) : threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), bias = input(context, 3);
    if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [K, N]");
    const int64_t k = w.shape[0], n = w.shape[1];
    expect("w_scales", scales, {n});
    if (bias.data) expect("bias", bias, {n});
    Product call(context, k, n);
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
  static constexpr ElementType outputs[] = {kFloat};
  static constexpr auto infer = infer_product<2>;

  explicit LinearBlocks(const KernelInfo* info)
      : threads(ort::threads(info)),
        k(attribute(info, "K")),
        n(attribute(info, "N")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {
    if (k <= 0 || n <= 0 || block < 16 || block & (block - 1) || (bits != 4 && bits != 8)) {
      throw std::invalid_argument("LinearBlocks takes 4 or 8 bits in blocks of 16, 32, 64, ...");
    }
  }

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), scales = input(context, 2), zeros = input(context, 3),
                 bias = input(context, 4);
    const int64_t blocks = (k + block - 1) / block;
    if (zeros.data && bits == 8) throw std::invalid_argument("8 bits take no zero_points");
    expect("w", w, {n, blocks, block * bits / 8});
    expect("scales", scales, {n, blocks});
    if (zeros.data) expect("zero_points", zeros, {n, (blocks + 1) / 2});
    if (bias.data) expect("bias", bias, {n});
    Product call(context, k, n);
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

template <ElementType Element>
struct LinearFloat {
  static constexpr const char* name = Element == kFloat16 ? "LinearHalf" : "LinearFloat";
  static constexpr Input inputs[] = {{kFloat}, {Element}, {kFloat, kOptional}};
  static constexpr ElementType outputs[] = {kFloat};
  static constexpr auto infer = infer_product<1>;

  explicit LinearFloat(const KernelInfo* info) : threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), bias = input(context, 2);
    if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [N, K]");
    const int64_t n = w.shape[0], k = w.shape[1];
    if (bias.data) expect("bias", bias, {n});
    Product call(context, k, n);
    call.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_float(call.x.as<float>(), call.rows, static_cast<size_t>(k),
                         static_cast<size_t>(n), w.data, Element == kFloat16, bias.as<float>(),
                         call.y, parallel);
    });
  }

  size_t threads;
};

}  // namespace

const CustomOp* const* linear_ops(size_t* count) {
  static const CustomOp linear8 = declared<Linear8>();
  static const CustomOp linear_blocks = declared<LinearBlocks>();
  static const CustomOp linear_float = declared<LinearFloat<kFloat>>();
  static const CustomOp linear_half = declared<LinearFloat<kFloat16>>();
  static const CustomOp* const all[] = {&linear8, &linear_blocks, &linear_float, &linear_half};
  *count = std::size(all);
  return all;
}

}  // namespace ort
