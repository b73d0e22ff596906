#pragma once
// What operators of one or more products share: their x, what becomes of it before, and of them after.
#include <array>

#include "op.h"

namespace ort {
namespace {

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
  float *total, *x;  // x: or null
};

// The products a node has of one x, and what it makes of them. Where normed, x is the norm of a sum,
// and four inputs come in its place: both terms and the norm's weights, of which the added ones are
// optional. The sum is then one more output, behind the products; behind it, where Laid, x is
// another: who reads none of it has it kept no longer than the node runs.
template <size_t Count, With Extra, bool Laid = true>
struct Group {
  static constexpr bool Gated = gated(Extra), Normed = normed(Extra);
  static_assert(!Gated || Count <= 2);
  static constexpr size_t first = Normed ? 4 : 1;  // input of the products
  static constexpr size_t products = Gated ? 1 : Count;
  static constexpr size_t outputs = products + Normed * (1 + Laid);
  vlmc::Gate gate = vlmc::Gate::none;
  float epsilon = 0;
  bool centered = false;

  explicit Group(const KernelInfo* info) {
    if (Normed) epsilon = float_attribute(info, "epsilon"), centered = attribute(info, "centered");
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
    return {rows.y(context, products, k), Laid ? rows.y(context, products + 1, k) : nullptr};
  }

  vlmc::Norm norm(KernelContext* context, const Rows& rows, int64_t k, const Sums& sums) const {
    const Tensor skip = input(context, 1), gamma = input(context, 2), beta = input(context, 3);
    expect("skip", skip, rows.x.shape);
    expect("gamma", gamma, {k});
    if (beta.data) expect("beta", beta, {k});
    return {rows.x.as<float>(), skip.as<float>(), gamma.as<float>(), beta.as<float>(),
            epsilon,            centered,         sums.total};
  }

  // What is multiplied, [rows, k].
  const float* multiplied(KernelContext* context, const Rows& rows, int64_t k, const Sums& sums,
                          const vlmc::Parallel& parallel) const {
    if (!Normed) return rows.x.as<float>();
    vlmc::add_norm(norm(context, rows, k, sums), rows.count, static_cast<size_t>(k), sums.x,
                   parallel);
    return sums.x;
  }

  // What the products read, whose inputs are `apart` inputs from each other and `width` bytes a number.
  template <size_t Size>
  static vlmc::Weights weights(const Inputs<Size>& given, size_t apart, size_t width) {
    vlmc::Weights made;
    made.beside = Gated;
    for (size_t i = 0; i < Count; ++i) {
      const Tensor& w = given.constant(first + apart * i);
      if (!w.data) return {};
      made.of[i] = {w.as<char>(), width};
      for (const int64_t n : w.shape) made.of[i].bytes *= static_cast<size_t>(n);
    }
    return made;
  }

  static void infer_sums(const ShapeContext* context) {
    for (size_t i = products; i < outputs; ++i) infer_like(context, 0, i);
  }

  // Inputs of floats, but for those of the products.
  template <size_t Size>
  static constexpr std::array<Input, Size> float_inputs() {
    std::array<Input, Size> made{};
    for (auto& one : made) one = {kFloat};
    if (Normed) made[3] = {kFloat, kOptional};
    return made;
  }

  static constexpr auto all_floats() {
    std::array<ElementType, outputs> types{};
    for (auto& type : types) type = kFloat;
    return types;
  }
};

}  // namespace
}  // namespace ort
