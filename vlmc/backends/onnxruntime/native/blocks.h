// Weights in blocks as operators of onnxruntime are given them.
#pragma once

#include "op.h"

namespace ort {
namespace {

struct Blocks {
  int64_t k, bits, block;

  explicit Blocks(const KernelInfo* info)
      : k(attribute(info, "K")), bits(attribute(info, "bits")), block(attribute(info, "block_size")) {
    if (k <= 0 || block < 16 || block & (block - 1) || (bits != 4 && bits != 8)) {
      throw std::invalid_argument("blocks have 4 or 8 bits, and 16, 32, 64, ... of K numbers");
    }
  }

  // n channels, checked; bias and y are left open.
  vlmc::Product product(const Tensor& w, const Tensor& scales, const Tensor& zeros,
                        int64_t n) const {
    if (n <= 0) throw std::invalid_argument("the weights are for no channel");
    const int64_t blocks = (k + block - 1) / block, panels = (n + 15) / 16;
    expect("w", w, {panels, blocks, block * bits / 32, 16, 4});
    expect("w_scales", scales, {panels, blocks, 16});
    if ((bits == 4) != (zeros.data != nullptr)) {
      throw std::invalid_argument("zero_points belong to 4 bits, and to no other");
    }
    if (zeros.data) expect("zero_points", zeros, {panels, (blocks + 1) / 2, 16});
    return {w.data, scales.data, zeros.as<uint8_t>(), nullptr, nullptr, static_cast<size_t>(n)};
  }
};

}  // namespace
}  // namespace ort
