// The arithmetic, apart from any engine: what ops.cpp and the tests call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace vlmc {

struct Weights;

// Raised with every change of an operator's meaning; vlmc/backends/onnxruntime/native/__init__.py
// refuses a library that was built from other sources. It is the version of the operators too, and
// of their domain in programs: those that were made for other ones are refused, and their bundle's
// portable ones run.
constexpr int kInterface = 9;

// Runs task(data, 0) .. task(data, tasks - 1), each once, in any order, and waits for all of them.
// A task must not throw. threads: how many may run at a time, to choose the number of tasks by.
struct Parallel {
  void (*run)(void* self, void (*task)(void* data, size_t index), size_t tasks, void* data);
  void* self;
  size_t threads;
  // What is read next, and behind this call: a thread that waits asks memory for it. Or null.
  const std::atomic<const Weights*>*next = nullptr, *after = nullptr;

  void operator()(void (*task)(void* data, size_t index), size_t tasks, void* data) const {
    run(self, task, tasks, data);
  }
};

// Whether this CPU has the instructions that the functions below are made of.
bool supported();

// One of several products of the same x[m, k]: y[m, n] = x w + bias. All contiguous; bias may be
// null.
struct Product {
  const void* w;
  const void* scales;  // float, or float16 where so said
  const uint8_t* zero_points;  // or null
  const float* bias;
  float* y;
  size_t n;
};

// What becomes of one product, each number of whose y is activation(itself), or of two of one width:
// then it is that times the second one's number, which has no y of its own.
enum class Gate { none = 0, silu = 1, gelu_tanh = 2, gelu_quick = 3, gelu = 4 };

// total[m, k] = x + skip, and the norm of each of its rows: the row, less its mean where centered,
// over sqrt(the mean of that's squares + epsilon), times gamma[k], and beta[k] added, where not null.
struct Norm {
  const float *x, *skip, *gamma, *beta;
  float epsilon;
  bool centered;
  float* total;
};

// Products with w of int8 in panels of 64 channels, [ceil(n / 64)][ceil(k / 4)][64][4]: channel
// 64 p + c has number 4 g + i of its k at [p][g][c][i], and what no channel has is 0. A row of x is
// quantized to int8 with one scale, (largest magnitude + 1e-12) / 127; channel j of w has the scale
// scales[j]. k and n are positive. Throws std::bad_alloc.
void linear_panels(const float* x, size_t m, size_t k, const Product* products, size_t count,
                   Gate gate, const Parallel& parallel);

// The same of norms, which lie nowhere but in their codes.
void linear_panels(const Norm& norm, size_t m, size_t k, const Product* products, size_t count,
                   Gate gate, const Parallel& parallel);

// Products with w of blocks in panels of 16 channels: blocks = ceil(k / block) of a channel, block 16,
// 32, 64, ... Channel 16 p + c has byte 4 g + i of its block b at codes[p][b][g][c][i], its scale at
// scales[p][b][c], float16, and what no channel has may be anything.
// bits 8: a byte is one number, around 128; zero_points null.
// bits 4: a byte is two numbers, the first one low; block b has its zero point in zero_points
// [p][b / 2][c], low for an even b.
// Up to eight rows of x are quantized to int8 with one scale for each block. More rows, at 4 bits,
// have one scale each, and each row of w is rounded again, to 8 bits with one scale: then the
// product is as fast as that of 8-bit weights. Throws std::bad_alloc.
void linear_blocks(const float* x, size_t m, size_t k, int bits, size_t block,
                   const Product* products, size_t count, Gate gate, const Parallel& parallel);

// table.y[count, k] = rows ids[count], each within 0 .. table.n - 1, of such weights.
void block_rows(const Product& table, size_t k, int bits, size_t block, const int64_t* ids,
                size_t count, const Parallel& parallel);

// Products with the transpose of w[n, k], float16 where half, in float32. k and n are positive.
// Throws std::bad_alloc.
void linear_float(const float* x, size_t m, size_t k, const Product* products, size_t count,
                  bool half, Gate gate, const Parallel& parallel);

// total and normed[m, k].
void add_norm(const Norm& norm, size_t m, size_t k, float* normed, const Parallel& parallel);

struct AttentionShape {
  size_t heads, group, head_size;  // query heads, query heads of a key head, numbers of a head
  float scale, softcap;            // softcap 0: none
  bool causal;
  size_t window;  // keys a query sees, itself included; 0: all before it
  size_t bias_head_stride = 0, bias_width = 0;
};

// Angles of tokens: heads' numbers i and half + i are turned by those whose cosine and sine are
// cos[tokens, half] and sin[tokens, half]; 2 half is at most a head's size. 0: none is turned.
struct Turn {
  const float* cos = nullptr;
  const float* sin = nullptr;
  size_t half = 0;
};

// out[tokens, heads, size] = x, turned.
void rotate(const float* x, size_t tokens, size_t heads, size_t size, const Turn& by, float* out,
            const Parallel& parallel);

// out[batch, step, heads, head_size] = softmax(query key^T) value over a cache [batch, key heads,
// capacity, head_size] (float16 where half), which key and value [batch, step, key heads,
// head_size] are written to first. Heads of query and key are turned before. lengths[batch]: of
// each row's cache after this step; a row whose length is less than step, or more than capacity, is
// left alone and its answer is zeros. Where rounded, step is more than 1 and the CPU has
// AVX512_BF16, factors are rounded to bfloat16. Throws std::bad_alloc.
void cached_attention(const AttentionShape& shape, size_t batch, size_t step, size_t capacity,
                      const float* query, const float* key, const float* value, const Turn& by,
                      const int32_t* lengths, void* keys, void* values, bool half, bool rounded,
                      float* out, const Parallel& parallel);

// The same where every query sees all keys of its row; key and value [batch, total, key heads,
// head_size]. bias, or null, is added to the scores: row b's, head h's, lies at
// b * bias_batch_stride + h * bias_head_stride, [step, total] with rows bias_width apart (0: one
// row for all). Where rounded, and the CPU has AVX512_BF16, factors are rounded to bfloat16.
void tower_attention(const AttentionShape& shape, size_t batch, size_t step, size_t total,
                     const float* query, const float* key, const float* value, const float* bias,
                     size_t bias_batch_stride, bool rounded, float* out, const Parallel& parallel);

// Weights w[rows, columns], float or bfloat16, all finite, in blocks of 16, 32, ... 256 numbers, to
// scales of float16, codes and zero points; without zero_points to 8 bits. Panels: as linear_blocks
// reads them, and what no row has is left as it is. Else row by row:
// codes[rows, blocks, block * bits / 8], scales[rows, blocks], zero_points[rows, ceil(blocks / 2)].
// restored[rows, columns]: what these stand for; null where nobody asks, and always but at 4 bits in
// panels. loss[3]: the sums of squared errors and of squared weights, and the largest error.
void quantize_blocks(const void* w, bool bfloat16, size_t rows, size_t columns, size_t block,
                     bool panels, uint8_t* codes, uint16_t* scales, uint8_t* zero_points,
                     float* restored, double* loss);

// y[m, n], rows `pitch` apart, = x[m, k] times the transpose of w[n, k], bfloat16: as exact as in
// float32, and what a row becomes depends on it alone. False where there is no memory.
bool linear_bfloat16(const float* x, size_t m, size_t k, const uint16_t* w, size_t n, float* y,
                     size_t pitch);

// The same by tiles. False, too, where there are none, or no whole ones in k.
bool linear_exact(const float* x, size_t m, size_t k, const uint16_t* w, size_t n, float* y,
                  size_t pitch);

}  // namespace vlmc
