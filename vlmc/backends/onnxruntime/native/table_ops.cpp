// Rows of tables as an operator of onnxruntime.
#include <vector>

#include "blocks.h"

namespace ort {
namespace {

// inputs: ids int64, then a table of N rows as LinearBlockPanels has its weights: w, w_scales and, at 4
// bits, zero_points. The output has ids' sizes and K. As Gather does, an id below 0 counts from the
// end.
struct BlockRows {
  static constexpr const char* name = "BlockRows";
  static constexpr Input inputs[] = {{kInt64}, {kUint8}, {kFloat16}, {kUint8, kOptional}};
  static constexpr ElementType outputs[] = {kFloat};

  static void infer(const ShapeContext*) {}

  explicit BlockRows(const KernelInfo* info)
      : threads(ort::threads(info)), blocks(info), n(attribute(info, "N")), given(info) {}

  void compute(KernelContext* context) const {
    const Tensor ids = input(context, 0);
    vlmc::Product table =
        blocks.product(given(context, 1), given(context, 2), given(context, 3), n);
    std::vector<int64_t> sizes(ids.shape.begin(), ids.shape.end());
    size_t count = 1;
    for (const int64_t size : sizes) count *= static_cast<size_t>(size);
    sizes.push_back(blocks.k);
    table.y = static_cast<float*>(output(context, 0, {sizes.data(), sizes.size()}));
    std::vector<int64_t> rows(ids.as<int64_t>(), ids.as<int64_t>() + count);
    for (int64_t& id : rows) {
      if (id < -n || id >= n) {
        throw std::invalid_argument("id " + std::to_string(id) + " is not of a table of " +
                                    std::to_string(n) + " rows");
      }
      if (id < 0) id += n;
    }
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::block_rows(table, static_cast<size_t>(blocks.k), static_cast<int>(blocks.bits),
                       static_cast<size_t>(blocks.block), rows.data(), count, parallel);
    });
  }

  size_t threads;
  Blocks blocks;
  int64_t n;
  Inputs<4> given;
};

}  // namespace

const Operator* const* table_ops(size_t* count) {
  static const Operator rows = declared<BlockRows>();
  static const Operator* const all[] = {&rows};
  *count = std::size(all);
  return all;
}

}  // namespace ort
