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

// What a node does besides multiplying: an activation of what comes out, or a norm of what goes in.
enum class With { nothing, gate, norm, norm_and_gate };
constexpr bool gated(With with) { return with == With::gate || with == With::norm_and_gate; }
constexpr bool normed(With with) { return with == With::norm || with == With::norm_and_gate; }

struct Sums {
  float *total, *x;
};

// The products a node has of one x, and what it makes of them. Where normed, x is the norm of a sum,
// and three inputs come in its place: both terms and the norm's weights. The sum and x are then two
// more outputs, behind the products: who reads none of x has it kept no longer than the node runs.
template <size_t Count, With Extra>
struct Group {
  static constexpr bool Gated = gated(Extra), Normed = normed(Extra);
  static_assert(!Gated || Count <= 2);
  static constexpr size_t first = Normed ? 3 : 1;  // input of the products
  static constexpr size_t products = Gated ? 1 : Count, outputs = products + 2 * Normed;
  vlmc::Gate gate = vlmc::Gate::none;
  float epsilon = 0;

  explicit Group(const KernelInfo* info) {
    if (Normed) epsilon = float_attribute(info, "epsilon");
    if (!Gated) return;
    const int64_t kind = attribute(info, "gate");
    if (kind < 1 || kind > 4) {
      throw std::invalid_argument("gate is 1 (SiLU), 2 (tanh GELU), 3 (quick GELU) or 4 (GELU)");
    }
    gate = static_cast<vlmc::Gate>(kind);
  }

  // Outputs of the products, once their widths are known; gives those of a norm.
  Sums bind(KernelContext* context, const Rows& rows, int64_t k, vlmc::Product* made) const {
    for (size_t i = 0; i < Count; ++i) {
      if (Gated && made[i].n != made[0].n) {
        throw std::invalid_argument("a gate is for two products of one width");
      }
      const int64_t n = static_cast<int64_t>(made[i].n);
      made[i].y = i < products ? rows.y(context, i, n) : nullptr;
    }
    if (!Normed) return {};
    return {rows.y(context, products, k), rows.y(context, products + 1, k)};
  }

  // What is multiplied, [rows, k].
  const float* multiplied(KernelContext* context, const Rows& rows, int64_t k, const Sums& sums,
                          const vlmc::Parallel& parallel) const {
    if (!Normed) return rows.x.as<float>();
    const Tensor skip = input(context, 1), gamma = input(context, 2);
    expect("skip", skip, rows.x.shape);
    expect("gamma", gamma, {k});
    vlmc::add_norm(rows.x.as<float>(), skip.as<float>(), gamma.as<float>(), epsilon, rows.count,
                   static_cast<size_t>(k), sums.total, sums.x, parallel);
    return sums.x;
  }

  static void infer_sums(const ShapeContext* context) {
    if (Normed) infer_like(context, 0, products), infer_like(context, 0, products + 1);
  }

  static constexpr auto all_floats() {
    std::array<ElementType, outputs> types{};
    for (auto& type : types) type = kFloat;
    return types;
  }
};

// inputs: x, then w int8 [K, N], w_scales [N] and, or not, bias [N] of each product.
template <size_t Count, With Extra>
struct Linear8 : Group<Count, Extra> {
  using Group = ort::Group<Count, Extra>;
  static constexpr size_t first = Group::first;
  static constexpr const char* names[] = {"Linear8",       "Linear8x2",       "Linear8x3",
                                          "NormedLinear8", "NormedLinear8x2", "NormedLinear8x3",
                                          "Activated8",    "Gated8",          "",
                                          "NormedActivated8", "NormedGated8"};
  static constexpr const char* name = names[6 * gated(Extra) + 3 * normed(Extra) + Count - 1];
  static constexpr auto inputs = [] {
    std::array<Input, first + 3 * Count> made{};
    for (auto& one : made) one = {kFloat};
    for (size_t i = 0; i < Count; ++i)
      made[first + 3 * i] = {kInt8}, made[first + 3 * i + 2] = {kFloat, kOptional};
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::products; ++i) infer_product(context, first + 3 * i + 1, i);
    Group::infer_sums(context);
  }

  explicit Linear8(const KernelInfo* info) : Group(info), threads(ort::threads(info)) {}

  void compute(KernelContext* context) const {
    vlmc::Product products[Count];
    int64_t k = 0;
    for (size_t i = 0; i < Count; ++i) {
      const size_t at = first + 3 * i;
      const Tensor w = input(context, at), scales = input(context, at + 1),
                   bias = input(context, at + 2);
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
    const Sums sums = this->bind(context, rows, k, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear8(this->multiplied(context, rows, k, sums, parallel), rows.count,
                    static_cast<size_t>(k), products, Count, this->gate, parallel);
    });
  }

  size_t threads;
};

// inputs: x, then w uint8 [N, blocks, bytes], scales [N, blocks] and, or not, zero_points
// [N, ceil(blocks / 2)] and bias [N] of each product.
template <size_t Count, With Extra>
struct LinearBlocks : Group<Count, Extra> {
  using Group = ort::Group<Count, Extra>;
  static constexpr size_t first = Group::first;
  static constexpr const char* names[] = {
      "LinearBlocks",          "LinearBlocksx2",       "LinearBlocksx3",  "NormedLinearBlocks",
      "NormedLinearBlocksx2",  "NormedLinearBlocksx3", "ActivatedBlocks", "GatedBlocks", "",
      "NormedActivatedBlocks", "NormedGatedBlocks"};
  static constexpr const char* name = names[6 * gated(Extra) + 3 * normed(Extra) + Count - 1];
  static constexpr auto inputs = [] {
    std::array<Input, first + 4 * Count> made{};
    for (auto& one : made) one = {kFloat};
    for (size_t i = 0; i < Count; ++i) {
      made[first + 4 * i] = {kUint8};
      made[first + 4 * i + 2] = {kUint8, kOptional}, made[first + 4 * i + 3] = {kFloat, kOptional};
    }
    return made;
  }();
  static constexpr auto outputs = Group::all_floats();

  static void infer(const ShapeContext* context) {
    for (size_t i = 0; i < Group::products; ++i) infer_product(context, first + 4 * i, i);
    Group::infer_sums(context);
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
      const size_t at = first + 4 * i;
      const Tensor w = input(context, at), scales = input(context, at + 1),
                   zeros = input(context, at + 2), bias = input(context, at + 3);
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
    const Sums sums = this->bind(context, rows, k, products);
    if (!rows.count) return;
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::linear_blocks(this->multiplied(context, rows, k, sums, parallel), rows.count,
                          static_cast<size_t>(k), static_cast<int>(bits),
                          static_cast<size_t>(block), products, Count, this->gate, parallel);
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
      declared<Linear8<1, With::nothing>>(),
      declared<Linear8<2, With::nothing>>(),
      declared<Linear8<3, With::nothing>>(),
      declared<Linear8<1, With::gate>>(),
      declared<Linear8<2, With::gate>>(),
      declared<Linear8<1, With::norm>>(),
      declared<Linear8<2, With::norm>>(),
      declared<Linear8<3, With::norm>>(),
      declared<Linear8<1, With::norm_and_gate>>(),
      declared<Linear8<2, With::norm_and_gate>>(),
      declared<LinearBlocks<1, With::nothing>>(),
      declared<LinearBlocks<2, With::nothing>>(),
      declared<LinearBlocks<3, With::nothing>>(),
      declared<LinearBlocks<1, With::gate>>(),
      declared<LinearBlocks<2, With::gate>>(),
      declared<LinearBlocks<1, With::norm>>(),
      declared<LinearBlocks<2, With::norm>>(),
      declared<LinearBlocks<3, With::norm>>(),
      declared<LinearBlocks<1, With::norm_and_gate>>(),
      declared<LinearBlocks<2, With::norm_and_gate>>(),
      declared<LinearFloat<kFloat>>(),
      declared<LinearFloat<kFloat16>>(),
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
