// Attention as operators of onnxruntime: shapes checked, caches extended in place.
#include <algorithm>
#include <array>
#include <cstring>

#include "op.h"

namespace ort {
namespace {

void expect_rank(const char* name, const Tensor& tensor, size_t rank) {
  if (tensor.shape.size() != rank) {
    throw std::invalid_argument(std::string(name) + " is " + text(tensor.shape) + ", not of rank " +
                                std::to_string(rank));
  }
}

int64_t numbers(const Tensor& tensor) {
  int64_t count = 1;
  for (const int64_t n : tensor.shape) count *= n;
  return count;
}

// Heads of a node: query heads, and key heads that groups of them share.
struct Heads {
  int64_t query, key;

  explicit Heads(const KernelInfo* info)
      : query(attribute(info, "num_heads")), key(attribute(info, "kv_num_heads")) {
    if (query <= 0 || key <= 0 || query % key) {
      throw std::invalid_argument("num_heads is a multiple of kv_num_heads, both positive");
    }
  }

  // Of query [batch, step, query * size].
  int64_t size(const Tensor& tensor) const {
    expect_rank("query", tensor, 3);
    if (tensor.shape[2] <= 0 || tensor.shape[2] % query) {
      throw std::invalid_argument("query is " + text(tensor.shape) + ", for " +
                                  std::to_string(query) + " heads");
    }
    return tensor.shape[2] / query;
  }
};

// inputs: query [B, S, H * D], key and value [B, S, KV * D], caches [B, KV, C, D], lengths int32 [B]
// (of each row's cache after this step; one shorter than the step, or longer than the cache, is a
// row without a question, whose answer is zeros). outputs: [B, S, H * D], and the caches extended:
// in place where the same memory is bound to input and output, as it should be. Rotary: query and
// key are rotated first, by cos and sin [B, S, R / 2], two more inputs, R <= D; value may have any
// shape of as many numbers. rounded: see cached_attention.
template <ElementType Element, bool Rotary>
struct CachedAttention {
  static constexpr const char* names[] = {"CachedAttention", "CachedAttentionHalf",
                                          "RotaryAttention", "RotaryAttentionHalf"};
  static constexpr const char* name = names[2 * Rotary + (Element == kFloat16)];
  static constexpr auto inputs = [] {
    std::array<Input, Rotary ? 8 : 6> made{};
    for (auto& one : made) one = {kFloat};
    made[3] = made[4] = {Element};
    made[5] = {kInt32};
    return made;
  }();
  static constexpr ElementType outputs[] = {kFloat, Element, Element};

  static void infer(const ShapeContext* context) {
    infer_like(context, 0, 0);
    infer_like(context, 3, 1);
    infer_like(context, 4, 2);
  }

  explicit CachedAttention(const KernelInfo* info)
      : threads(ort::threads(info)),
        heads(info),
        scale(float_attribute(info, "scale")),
        softcap(float_attribute(info, "softcap")),
        window(attribute(info, "window")),
        rounded(attribute(info, "rounded")) {
    if (window < 0) throw std::invalid_argument("window is a number of keys, or 0");
  }

  void compute(KernelContext* context) const {
    const Tensor query = input(context, 0), key = input(context, 1), value = input(context, 2);
    const Tensor keys = input(context, 3), values = input(context, 4), lengths = input(context, 5);
    const int64_t size = heads.size(query), batch = query.shape[0], step = query.shape[1];
    expect_rank("past_key", keys, 4);
    const int64_t capacity = keys.shape[2];
    expect("key", key, {batch, step, heads.key * size});
    if (!Rotary || numbers(value) != batch * step * heads.key * size)
      expect("value", value, {batch, step, heads.key * size});
    expect("past_key", keys, {batch, heads.key, capacity, size});
    expect("past_value", values, keys.shape);
    expect("lengths", lengths, {batch});
    const Tensor cos = Rotary ? input(context, 6) : Tensor{};
    const Tensor sin = Rotary ? input(context, 7) : Tensor{};
    int64_t half = 0;
    if (Rotary) {
      expect_rank("cos", cos, 3);
      half = cos.shape[2];
      expect("cos", cos, {batch, step, std::min(half, size / 2)});
      expect("sin", sin, cos.shape);
    }
    float* out = static_cast<float*>(output(context, 0, query.shape));
    void* present_keys = present(context, 1, keys);
    void* present_values = present(context, 2, values);
    const vlmc::AttentionShape shape{static_cast<size_t>(heads.query),
                                     static_cast<size_t>(heads.query / heads.key),
                                     static_cast<size_t>(size),
                                     scale,
                                     softcap,
                                     true,
                                     static_cast<size_t>(window)};
    const vlmc::Turn by{cos.as<float>(), sin.as<float>(), static_cast<size_t>(half)};
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::cached_attention(shape, static_cast<size_t>(batch), static_cast<size_t>(step),
                             static_cast<size_t>(capacity), query.as<float>(), key.as<float>(),
                             value.as<float>(), by, lengths.as<int32_t>(), present_keys,
                             present_values, Element == kFloat16, rounded, out, parallel);
    });
  }

  static void* present(KernelContext* context, size_t index, const Tensor& past) {
    void* data = output(context, index, past.shape);
    if (data != past.data) {
      size_t bytes = Element == kFloat16 ? 2 : 4;
      for (int64_t n : past.shape) bytes *= static_cast<size_t>(n);
      std::memcpy(data, past.data, bytes);
    }
    return data;
  }

  size_t threads;
  Heads heads;
  float scale, softcap;
  int64_t window;
  bool rounded;
};

// inputs: query [B, S, H * D], key and value [B, T, KV * D], bias [1 or B, 1 or H, 1 or S, T] added
// to the scores; every query sees every key. output: [B, S, H * D]. Rounded: see tower_attention.
template <bool Rounded>
struct TowerAttention {
  static constexpr const char* name = Rounded ? "TowerAttentionBf16" : "TowerAttention";
  static constexpr Input inputs[] = {{kFloat}, {kFloat}, {kFloat}, {kFloat, kOptional}};
  static constexpr ElementType outputs[] = {kFloat};

  static void infer(const ShapeContext* context) { infer_like(context, 0, 0); }

  explicit TowerAttention(const KernelInfo* info)
      : threads(ort::threads(info)), heads(info), scale(float_attribute(info, "scale")) {}

  void compute(KernelContext* context) const {
    const Tensor query = input(context, 0), key = input(context, 1), value = input(context, 2);
    const Tensor bias = input(context, 3);
    const int64_t size = heads.size(query), batch = query.shape[0], step = query.shape[1];
    expect_rank("key", key, 3);
    const int64_t total = key.shape[1];
    expect("key", key, {batch, total, heads.key * size});
    expect("value", value, {batch, total, heads.key * size});
    vlmc::AttentionShape shape{static_cast<size_t>(heads.query),
                               static_cast<size_t>(heads.query / heads.key),
                               static_cast<size_t>(size),
                               scale,
                               0,
                               false,
                               0};
    size_t batch_stride = 0;
    if (bias.data) {
      expect_rank("bias", bias, 4);
      const int64_t rows = bias.shape[0] == 1 ? 1 : batch;
      const int64_t of_heads = bias.shape[1] == 1 ? 1 : heads.query;
      const int64_t of_steps = bias.shape[2] == 1 ? 1 : step;
      expect("bias", bias, {rows, of_heads, of_steps, total});
      const size_t square = static_cast<size_t>(of_steps * total);
      shape.bias_width = of_steps == 1 ? 0 : static_cast<size_t>(total);
      shape.bias_head_stride = of_heads == 1 ? 0 : square;
      batch_stride = rows == 1 ? 0 : static_cast<size_t>(of_heads) * square;
    }
    float* out = static_cast<float*>(output(context, 0, query.shape));
    Borrowed{context}.run(threads, [&](const vlmc::Parallel& parallel) {
      vlmc::tower_attention(shape, static_cast<size_t>(batch), static_cast<size_t>(step),
                            static_cast<size_t>(total), query.as<float>(), key.as<float>(), value.as<float>(),
                            bias.as<float>(), batch_stride, Rounded, out, parallel);
    });
  }

  size_t threads;
  Heads heads;
  float scale;
};

}  // namespace

const Operator* const* attention_ops(size_t* count) {
  static const Operator cached = declared<CachedAttention<kFloat, false>>();
  static const Operator cached_half = declared<CachedAttention<kFloat16, false>>();
  static const Operator rotary = declared<CachedAttention<kFloat, true>>();
  static const Operator rotary_half = declared<CachedAttention<kFloat16, true>>();
  static const Operator tower = declared<TowerAttention<false>>();
  static const Operator tower_rounded = declared<TowerAttention<true>>();
  static const Operator* const all[] = {&cached, &cached_half, &rotary,
                                      &rotary_half, &tower, &tower_rounded};
  *count = std::size(all);
  return all;
}

}  // namespace ort
