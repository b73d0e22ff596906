// Products with stored weights as operators of onnxruntime: shapes checked, threads borrowed.
#include "blocks.h"
#include "linear_group.h"

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

// inputs: x, then w int8 [ceil(N / 64), ceil(K / 4), 64, 4], w_scales [N] and, or not, bias [N] of
// each product.
template <size_t Count, With Extra>
struct LinearPanels : Group<Count, Extra, false> {
  using Group = ort::Group<Count, Extra, false>;
  static constexpr size_t first = Group::first;
  static constexpr const char* names[] = {
      "LinearPanels",          "LinearPanelsx2",       "LinearPanelsx3",  "NormedLinearPanels",
      "NormedLinearPanelsx2",  "NormedLinearPanelsx3", "ActivatedPanels", "GatedPanels", "",
      "NormedActivatedPanels", "NormedGatedPanels"};
  static constexpr const char* name = names[6 * gated(Extra) + 3 * normed(Extra) + Count - 1];
  static constexpr auto inputs = [] {
    auto made = Group::template float_inputs<first + 3 * Count>();
    for (size_t i = 0; i < Count; ++i)
      made[first + 3 * i] = {kInt8}, made[first + 3 * i + 2] = {kFloat, kOptional};
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::products; ++i) infer_product(context, first + 3 * i + 1, i);
    Group::infer_sums(context);
  }

  explicit LinearPanels(const KernelInfo* info)
      : Group(info), threads(ort::threads(info)), k(attribute(info, "K")), given(info) {
    if (k <= 0) throw std::invalid_argument("LinearPanels takes rows of K numbers");
  }

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    for (size_t i = 0; i < Count; ++i) {
      const size_t at = first + 3 * i;
      const Tensor w = given(context, at), scales = given(context, at + 1),
                   bias = given(context, at + 2);
      const int64_t n = scales.shape.empty() ? 0 : scales.shape[0];
      expect("w_scales", scales, {n});
      expect("w", w, {(n + 63) / 64, (k + 3) / 4, 64, 4});
      if (bias.data) expect("bias", bias, {n});
      products[i] = {w.data, scales.as<float>(), nullptr, bias.as<float>(), nullptr,
                     static_cast<size_t>(n)};
    }
    const Rows rows(context, k);
    const Sums sums = this->bind(context, rows, k, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      const auto multiply = [&](const auto& x) {
        vlmc::linear_panels(x, rows.count, static_cast<size_t>(k), products, Count, this->gate,
                            parallel);
      };
      if constexpr (Group::Normed)
        multiply(this->norm(context, rows, k, sums));
      else
        multiply(rows.x.template as<float>());
    });
  }

  vlmc::Weights weights() const { return Group::weights(given, 3, 1); }

  size_t threads;
  int64_t k;
  Inputs<first + 3 * Count> given;
};

// inputs: x, then w uint8 [panels, blocks, vectors, 16, 4], w_scales float16 [panels, blocks, 16], at 4
// bits zero_points [panels, ceil(blocks / 2), 16] and, or not, bias [N] of each product. Panels are
// filled up: the attributes N, N2 and N3 say how many channels there are.
template <size_t Count, With Extra>
struct LinearBlockPanels : Group<Count, Extra> {
  using Group = ort::Group<Count, Extra>;
  static constexpr size_t first = Group::first;
  static constexpr const char* names[] = {
      "LinearBlockPanels",          "LinearBlockPanelsx2",
      "LinearBlockPanelsx3",        "NormedLinearBlockPanels",
      "NormedLinearBlockPanelsx2",  "NormedLinearBlockPanelsx3",
      "ActivatedBlockPanels",       "GatedBlockPanels",
      "",                           "NormedActivatedBlockPanels",
      "NormedGatedBlockPanels"};
  static constexpr const char* name = names[6 * gated(Extra) + 3 * normed(Extra) + Count - 1];
  static constexpr auto inputs = [] {
    auto made = Group::template float_inputs<first + 4 * Count>();
    for (size_t i = 0; i < Count; ++i) {
      made[first + 4 * i] = {kUint8}, made[first + 4 * i + 1] = {kFloat16};
      made[first + 4 * i + 2] = {kUint8, kOptional}, made[first + 4 * i + 3] = {kFloat, kOptional};
    }
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) { Group::infer_sums(context); }

  explicit LinearBlockPanels(const KernelInfo* info)
      : Group(info), threads(ort::threads(info)), blocks(info), given(info) {
    constexpr const char* names[] = {"N", "N2", "N3"};
    for (size_t i = 0; i < Count; ++i) n[i] = attribute(info, names[i]);
  }

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    for (size_t i = 0; i < Count; ++i) {
      const size_t at = first + 4 * i;
      const Tensor bias = given(context, at + 3);
      if (bias.data) expect("bias", bias, {n[i]});
      products[i] = blocks.product(given(context, at), given(context, at + 1),
                                   given(context, at + 2), n[i]);
      products[i].bias = bias.as<float>();
    }
    const Rows rows(context, blocks.k);
    const Sums sums = this->bind(context, rows, blocks.k, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_blocks(this->multiplied(context, rows, blocks.k, sums, parallel), rows.count,
                          static_cast<size_t>(blocks.k), static_cast<int>(blocks.bits),
                          static_cast<size_t>(blocks.block), products, Count, this->gate, parallel);
    });
  }

  vlmc::Weights weights() const { return Group::weights(given, 4, 1); }

  size_t threads;
  Blocks blocks;
  int64_t n[Count];
  Inputs<first + 4 * Count> given;
};

// inputs: x, then w float or float16 [N, K] and, or not, bias [N] of each product.
template <ElementType Element, size_t Count, With Extra>
struct LinearFloat : Group<Count, Extra> {
  using Group = ort::Group<Count, Extra>;
  static constexpr size_t first = Group::first;
  static constexpr const char* names[2][11] = {
      {"LinearFloat", "LinearFloatx2", "LinearFloatx3", "NormedLinearFloat", "NormedLinearFloatx2",
       "NormedLinearFloatx3", "ActivatedFloat", "GatedFloat", "", "NormedActivatedFloat",
       "NormedGatedFloat"},
      {"LinearHalf", "LinearHalfx2", "LinearHalfx3", "NormedLinearHalf", "NormedLinearHalfx2",
       "NormedLinearHalfx3", "ActivatedHalf", "GatedHalf", "", "NormedActivatedHalf",
       "NormedGatedHalf"}};
  static constexpr const char* name =
      names[Element == kFloat16][6 * gated(Extra) + 3 * normed(Extra) + Count - 1];
  static constexpr auto inputs = [] {
    auto made = Group::template float_inputs<first + 2 * Count>();
    for (size_t i = 0; i < Count; ++i)
      made[first + 2 * i] = {Element}, made[first + 2 * i + 1] = {kFloat, kOptional};
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::products; ++i) infer_product(context, first + 2 * i, i);
    Group::infer_sums(context);
  }

  explicit LinearFloat(const KernelInfo* info)
      : Group(info), threads(ort::threads(info)), given(info) {}

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    int64_t k = 0;
    for (size_t i = 0; i < Count; ++i) {
      const size_t at = first + 2 * i;
      const Tensor w = given(context, at), bias = given(context, at + 1);
      if (w.shape.size() != 2) throw std::invalid_argument("w is " + text(w.shape) + ", not [N, K]");
      if (i == 0) k = w.shape[1];
      const int64_t n = w.shape[0];
      expect("w", w, {n, k});
      if (bias.data) expect("bias", bias, {n});
      products[i] = {w.data, nullptr, nullptr, bias.as<float>(), nullptr, static_cast<size_t>(n)};
    }
    const Rows rows(context, k);
    const Sums sums = this->bind(context, rows, k, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_float(this->multiplied(context, rows, k, sums, parallel), rows.count,
                         static_cast<size_t>(k), products, Count, Element == kFloat16, this->gate,
                         parallel);
    });
  }

  vlmc::Weights weights() const { return Group::weights(given, 2, Element == kFloat16 ? 2 : 4); }

  size_t threads;
  Inputs<first + 2 * Count> given;
};

}  // namespace

const Operator* const* linear_ops(size_t* count) {
  static const Operator made[] = {
      declared<LinearPanels<1, With::nothing>>(),
      declared<LinearPanels<2, With::nothing>>(),
      declared<LinearPanels<3, With::nothing>>(),
      declared<LinearPanels<1, With::gate>>(),
      declared<LinearPanels<2, With::gate>>(),
      declared<LinearPanels<1, With::norm>>(),
      declared<LinearPanels<2, With::norm>>(),
      declared<LinearPanels<3, With::norm>>(),
      declared<LinearPanels<1, With::norm_and_gate>>(),
      declared<LinearPanels<2, With::norm_and_gate>>(),
      declared<LinearBlockPanels<1, With::nothing>>(),
      declared<LinearBlockPanels<2, With::nothing>>(),
      declared<LinearBlockPanels<3, With::nothing>>(),
      declared<LinearBlockPanels<1, With::gate>>(),
      declared<LinearBlockPanels<2, With::gate>>(),
      declared<LinearBlockPanels<1, With::norm>>(),
      declared<LinearBlockPanels<2, With::norm>>(),
      declared<LinearBlockPanels<3, With::norm>>(),
      declared<LinearBlockPanels<1, With::norm_and_gate>>(),
      declared<LinearBlockPanels<2, With::norm_and_gate>>(),
      declared<LinearFloat<kFloat, 1, With::nothing>>(),
      declared<LinearFloat<kFloat, 2, With::nothing>>(),
      declared<LinearFloat<kFloat, 3, With::nothing>>(),
      declared<LinearFloat<kFloat, 1, With::gate>>(),
      declared<LinearFloat<kFloat, 2, With::gate>>(),
      declared<LinearFloat<kFloat, 1, With::norm>>(),
      declared<LinearFloat<kFloat, 2, With::norm>>(),
      declared<LinearFloat<kFloat, 3, With::norm>>(),
      declared<LinearFloat<kFloat, 1, With::norm_and_gate>>(),
      declared<LinearFloat<kFloat, 2, With::norm_and_gate>>(),
      declared<LinearFloat<kFloat16, 1, With::nothing>>(),
      declared<LinearFloat<kFloat16, 2, With::nothing>>(),
      declared<LinearFloat<kFloat16, 3, With::nothing>>(),
      declared<LinearFloat<kFloat16, 1, With::gate>>(),
      declared<LinearFloat<kFloat16, 2, With::gate>>(),
      declared<LinearFloat<kFloat16, 1, With::norm>>(),
      declared<LinearFloat<kFloat16, 2, With::norm>>(),
      declared<LinearFloat<kFloat16, 3, With::norm>>(),
      declared<LinearFloat<kFloat16, 1, With::norm_and_gate>>(),
      declared<LinearFloat<kFloat16, 2, With::norm_and_gate>>(),
  };
  static const auto all = [] {
    std::array<const Operator*, std::size(made)> found{};
    for (size_t i = 0; i < found.size(); ++i) found[i] = &made[i];
    return found;
  }();
  *count = all.size();
  return all.data();
}

}  // namespace ort
