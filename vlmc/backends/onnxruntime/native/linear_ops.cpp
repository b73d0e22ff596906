// Products with stored weights as operators of onnxruntime: shapes checked, threads borrowed.
#include <array>

#include "op.h"

namespace ort {
namespace {

// Output `at` has x's shape with its last size replaced by the rows of input `of`.
void infer_product(const ShapeContext* context, size_t of, size_t at = 0) {
  TypeShape *x = nullptr, *rows = nullptr;  // both stay the context's own
  check(api->ShapeInferContext_GetInputTypeShape(context, 0, &x));
  check(api->ShapeInferContext_GetInputTypeShape(context, of, &rows));
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
  check(api->ShapeInferContext_SetOutputTypeShape(context, at, y.it));
}

// The x of a node whose products take k numbers a row.
struct Rows {
  Tensor x;
  size_t count = 1;

  Rows(KernelContext* context, int64_t k) : x(input(context, 0)) {
    if (k <= 0 || x.shape.empty() || x.shape.back() != k) {
      throw std::invalid_argument("x is " + text(x.shape) + ", the weights are for " +
                                  std::to_string(k) + " numbers");
    }
    for (size_t i = 0; i + 1 < x.shape.size(); ++i) count *= static_cast<size_t>(x.shape[i]);
  }

  // Output `at` of n numbers a row.
  float* y(KernelContext* context, size_t at, int64_t n) const {
    if (n <= 0) throw std::invalid_argument("the weights are for no channel");
    Shape shape = x.shape;
    shape.back() = n;
    return static_cast<float*>(output(context, at, shape));
  }
};

// How many products a node has of one x, and what it makes of them.
template <size_t Count, bool Gated>
struct Group {
  static_assert(!Gated || Count <= 2);
  static constexpr size_t count = Count, outputs = Gated ? 1 : Count;
  vlmc::Gate gate = vlmc::Gate::none;

  explicit Group(const KernelInfo* info) {
    if (!Gated) return;
    const int64_t kind = attribute(info, "gate");
    if (kind < 1 || kind > 4) {
      throw std::invalid_argument("gate is 1 (SiLU), 2 (tanh GELU), 3 (quick GELU) or 4 (GELU)");
    }
    gate = static_cast<vlmc::Gate>(kind);
  }

  // Outputs of the products, once their widths are known.
  void bind(KernelContext* context, const Rows& rows, vlmc::Product* products) const {
    for (size_t i = 0; i < Count; ++i) {
      if (Gated && products[i].n != products[0].n) {
        throw std::invalid_argument("a gate is for two products of one width");
      }
      const int64_t n = static_cast<int64_t>(products[i].n);
      products[i].y = i < outputs ? rows.y(context, i, n) : nullptr;
    }
  }

  static constexpr auto all_floats() {
    std::array<ElementType, outputs> types{};
    for (auto& type : types) type = kFloat;
    return types;
  }
};

// inputs: x, then w int8 [K, N], w_scales [N] and, or not, bias [N] of each product.
template <size_t Count, bool Gated>
struct Linear8 : Group<Count, Gated> {
  using Group = ort::Group<Count, Gated>;
  static constexpr const char* names[] = {"Linear8", "Linear8x2", "Linear8x3"};
  static constexpr const char* name =
      !Gated ? names[Count - 1] : Count == 1 ? "Activated8" : "Gated8";
  static constexpr auto inputs = [] {
    std::array<Input, 1 + 3 * Count> made{};
    made[0] = {kFloat};
    for (size_t i = 0; i < Count; ++i) {
      made[1 + 3 * i] = {kInt8}, made[2 + 3 * i] = {kFloat};
      made[3 + 3 * i] = {kFloat, kOptional};
    }
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::outputs; ++i) infer_product(context, 2 + 3 * i, i);
  }

  explicit Linear8(const KernelInfo* info) : Group(info), threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    int64_t k = 0;
    for (size_t i = 0; i < Count; ++i) {
      const Tensor w = input(context, 1 + 3 * i), scales = input(context, 2 + 3 * i),
                   bias = input(context, 3 + 3 * i);
      if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [K, N]");
      if (i == 0) k = w.shape[0];
      const int64_t n = w.shape[1];
      expect("w", w, {k, n});
      expect("w_scales", scales, {n});
      if (bias.data) expect("bias", bias, {n});
      products[i] = {w.data, scales.as<float>(), nullptr, bias.as<float>(), nullptr,
                     static_cast<size_t>(n)};
    }
    const Rows rows(context, k);
    this->bind(context, rows, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear8(rows.x.as<float>(), rows.count, static_cast<size_t>(k), products, Count,
                    this->gate, parallel);
    });
  }

  size_t threads;
};

// inputs: x, then w uint8 [N, blocks, bytes], scales [N, blocks] and, or not, zero_points
// [N, ceil(blocks / 2)] and bias [N] of each product.
template <size_t Count, bool Gated>
struct LinearBlocks : Group<Count, Gated> {
  using Group = ort::Group<Count, Gated>;
  static constexpr const char* names[] = {"LinearBlocks", "LinearBlocksx2", "LinearBlocksx3"};
  static constexpr const char* name =
      !Gated ? names[Count - 1] : Count == 1 ? "ActivatedBlocks" : "GatedBlocks";
  static constexpr auto inputs = [] {
    std::array<Input, 1 + 4 * Count> made{};
    made[0] = {kFloat};
    for (size_t i = 0; i < Count; ++i) {
      made[1 + 4 * i] = {kUint8}, made[2 + 4 * i] = {kFloat};
      made[3 + 4 * i] = {kUint8, kOptional}, made[4 + 4 * i] = {kFloat, kOptional};
    }
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::outputs; ++i) infer_product(context, 1 + 4 * i, i);
  }

  explicit LinearBlocks(const KernelInfo* info)
      : Group(info),
        threads(ort::threads(info)),
        k(attribute(info, "K")),
        bits(attribute(info, "bits")),
        block(attribute(info, "block_size")) {
    if (k <= 0 || block < 16 || block & (block - 1) || (bits != 4 && bits != 8)) {
      throw std::invalid_argument("LinearBlocks takes 4 or 8 bits in blocks of 16, 32, 64, ...");
    }
  }

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    const int64_t blocks = (k + block - 1) / block;
    for (size_t i = 0; i < Count; ++i) {
      const Tensor w = input(context, 1 + 4 * i), scales = input(context, 2 + 4 * i),
                   zeros = input(context, 3 + 4 * i), bias = input(context, 4 + 4 * i);
      if (zeros.data && bits == 8) throw std::invalid_argument("8 bits take no zero_points");
      const int64_t n = w.shape.empty() ? 0 : w.shape[0];
      expect("w", w, {n, blocks, block * bits / 8});
      expect("scales", scales, {n, blocks});
      if (zeros.data) expect("zero_points", zeros, {n, (blocks + 1) / 2});
      if (bias.data) expect("bias", bias, {n});
      products[i] = {w.data, scales.as<float>(), zeros.as<uint8_t>(), bias.as<float>(), nullptr,
                     static_cast<size_t>(n)};
    }
    const Rows rows(context, k);
    this->bind(context, rows, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_blocks(rows.x.as<float>(), rows.count, static_cast<size_t>(k),
                          static_cast<int>(bits), static_cast<size_t>(block), products, Count,
                          this->gate, parallel);
    });
  }

  size_t threads;
  int64_t k, bits, block;
};

template <ElementType Element>
struct LinearFloat {
  static constexpr const char* name = Element == kFloat16 ? "LinearHalf" : "LinearFloat";
  static constexpr Input inputs[] = {{kFloat}, {Element}, {kFloat, kOptional}};
  static constexpr ElementType outputs[] = {kFloat};
  static void infer(const ShapeContext* context) { infer_product(context, 1); }

  explicit LinearFloat(const KernelInfo* info) : threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    const Tensor w = input(context, 1), bias = input(context, 2);
    if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [N, K]");
    const int64_t n = w.shape[0], k = w.shape[1];
    if (bias.data) expect("bias", bias, {n});
    const Rows rows(context, k);
    float* y = rows.y(context, 0, n);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_float(rows.x.as<float>(), rows.count, static_cast<size_t>(k),
                         static_cast<size_t>(n), w.data, Element == kFloat16, bias.as<float>(), y,
                         parallel);
    });
  }

  size_t threads;
};

}  // namespace

const CustomOp* const* linear_ops(size_t* count) {
  static const CustomOp made[] = {
      declared<Linear8<1, false>>(),      declared<Linear8<2, false>>(),
      declared<Linear8<3, false>>(),      declared<Linear8<2, true>>(),
      declared<LinearBlocks<1, false>>(), declared<LinearBlocks<2, false>>(),
      declared<LinearBlocks<3, false>>(), declared<LinearBlocks<2, true>>(),
      declared<Linear8<1, true>>(),       declared<LinearBlocks<1, true>>(),
      declared<LinearFloat<kFloat>>(),    declared<LinearFloat<kFloat16>>(),
  };
  static const auto all = [] {
    std::array<const CustomOp*, std::size(made)> found{};
    for (size_t i = 0; i < found.size(); ++i) found[i] = &made[i];
    return found;
  }();
  *count = all.size();
  return all.data();
}

}  // namespace ort
