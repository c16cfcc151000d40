// The table of kernels that an instruction set provides. All sets give the same bits.
//
// Shape legend: m rows of activations (tokens), K columns, N outputs, D head dimension, P positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace draftsmith {

constexpr int kMaxHeadDim = 256;
constexpr int kBlockPositions = 64;  // positions in a block of the KV cache; attention splits the context there

constexpr int kPieceBlocks = 4;
constexpr int kPiecePositions = kPieceBlocks * kBlockPositions;  // attention works on pieces, cut at their multiples

// What a cache keeps a value as. int8: see attention_int8.hpp.
enum class CacheType { half, full, int8 };

constexpr int padded_head(int head_dim) { return (head_dim + kGroup - 1) / kGroup * kGroup; }
constexpr size_t int8_key_scales(int head_dim) { return static_cast<size_t>(padded_head(head_dim) / kGroup * kBlockPositions) * 2; }  // bytes
constexpr size_t int8_value_scales() { return kBlockPositions * 2; }

extern const bool kFetchIntoSecondCache;  // where weights that several tokens meet are best fetched to; AMD's processors

constexpr int kRowGroup = 64;  // entries of a row of logits whose largest is looked at together

// Query rows against one piece of one key-value head. In a block keys lie [D][64], values [64][D].
struct AttentionJob {
    const float* const* queries;         // [rows] -> [D], already scaled
    const QuantGroup* const* codes;      // [rows] -> the same quantised, kQuantBlock groups apart; int8 caches only
    const float (*centres)[kMaxHeadDim]; // [blocks of the piece][D]: what was taken off their keys; int8 caches only, may be null
    float* const* out;                   // [rows] -> [D]: sum over positions of exp(score - maximum) * value
    float* maxima;                       // [rows]
    float* sums;                         // [rows]: sum of exp(score - maximum)
    const int* first;                    // [rows]: the row sees positions first <= i < last of this piece, at least one
    const int* last;                     // [rows]
    int rows;                            // at most kAttentionRows
    int head_dim;
    const uint8_t* const* keys;          // [blocks of the piece, as far as they are seen]
    const uint8_t* const* values;
    const uint8_t* const* next_keys;     // [kPieceBlocks]: what will be read after this piece; any memory of that size
};
constexpr int kAttentionRows = 8;

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
    void (*attend[3])(const AttentionJob&);  // by CacheType
    // out = the fold of pieces: running maximum m, sum l, vector o (all updated).
    void (*attention_fold)(float* m, float* l, float* o, float piece_m, float piece_l, const float* piece_o, size_t head_dim);
    void (*attention_finish)(const float* o, float l, float* out, size_t head_dim);
    void (*store_half)(const float* x, uint16_t* y, size_t n);  // n a multiple of 16
    // Symmetric 8-bit codes of n values (a multiple of 16) with one scale, which is returned.
    float (*store_codes)(const float* x, int8_t* codes, size_t n);
    // out[i] = the largest of the kRowGroup entries from i * kRowGroup on.
    void (*group_maxima)(const float* row, size_t groups, float* out);
    // Sum of exp(row[i] - shift); n a multiple of 16.
    float (*exp_sum)(const float* row, size_t n, float shift);
    // Peaks to compare with; see peaks.hpp. A round is kChains products of 64, or of 16 floats.
    void (*peak_int8)(size_t rounds, const int8_t* x, float* out);
    void (*peak_float)(size_t rounds, const float* x, float* out);
    uint8_t (*read_lines)(const uint8_t* data, size_t bytes);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#elif defined(__aarch64__)
const Kernels& neon_kernels();
#endif

}  // namespace draftsmith
