// The table of kernels that an instruction set provides. All sets give the same bits.
//
// Shape legend: m rows of activations (tokens), K columns, N outputs, D head dimension, P positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace draftsmith {

constexpr int kBlockPositions = 64;  // positions in a block of the KV cache; attention splits the context there

// One query row against one block of one key-value head. Keys lie [D][64], values [64][D], as f16 or f32.
struct AttentionJob {
    const float* const* queries;   // [rows] -> [D], already scaled
    float* const* partial_out;     // [rows] -> [D]: sum over positions of exp(score - max) * value
    float* partial_max;            // [rows]
    float* partial_sum;            // [rows]: sum of exp(score - max)
    const int* first;              // [rows]: the row sees positions first <= i < last of this block, at least one
    const int* last;               // [rows]
    int rows;                      // at most kAttentionRows
    int head_dim;
    const void* keys;
    const void* values;
};
constexpr int kAttentionRows = 4;

struct Kernels {
    const char* name;
    // out[row * out_stride + n] (+)= sum over k of weights[n][k] * x[row][k], for the 16-row tiles first..last-1.
    // x is QuantRows for quantised weights and float rows (stride x_stride) for the others.
    void (*matmul_quant)(const Weights&, size_t first_tile, size_t last_tile, const QuantRows& x, size_t first_row, size_t m,
                         float* out, size_t out_stride, bool add);
    void (*matmul_float)(const Weights&, size_t first_tile, size_t last_tile, const float* x, size_t x_stride, size_t m,
                         float* out, size_t out_stride, bool add);
    // y = x / sqrt(mean(x^2) + eps) * weight; n a multiple of 16.
    void (*rms_norm)(const float* x, const float* weight, float* y, size_t n, float eps);
    // Quantise groups of 32 of one row into row `row` of `out`, from column `first_col` on.
    void (*quantise)(const float* x, size_t n, const QuantRows& out, size_t row, size_t first_col);
    // gate[i] = silu(gate[i]) * up[i]; n a multiple of 16.
    void (*silu_mul)(float* gate, const float* up, size_t n);
    // Rotate pairs (i, i + D/2) of one head in place, then multiply by `scale`.
    void (*rope)(float* head, const float* cos, const float* sin, size_t head_dim, float scale);
    // Add n floats.
    void (*add)(float* x, const float* y, size_t n);
    void (*attend_half)(const AttentionJob&);
    void (*attend_float)(const AttentionJob&);
    // out = the fold of blocks: running maximum m, sum l, vector o (all updated).
    void (*attention_fold)(float* m, float* l, float* o, float block_m, float block_l, const float* block_o, size_t head_dim);
    void (*attention_finish)(const float* o, float l, float* out, size_t head_dim);
    void (*store_half)(const float* x, uint16_t* y, size_t n);  // n a multiple of 16
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace draftsmith
