// Scores and weighted values over keys and values of 8 bits, by exact integer dot products.
//
// A block of one head, D padded to D' = a multiple of 32 columns:
//   keys    f16 scales [D'/32][64], then codes + 128 [D'/4][64][4]: a position's 4 columns side by side
//   values  f16 scales [64], then codes [16][D][4]: a column's 4 positions side by side
// Keys and queries have been spread, and the keys of a block centred (attend.cpp). A query meets the keys as 8-bit codes in groups of 32, the weights meet the values as integers of 14 bits.
#pragma once

#include "attention_float.hpp"
#include "formats.hpp"

namespace draftsmith {
namespace {

constexpr float kWeightCodes = 16383.0f;  // 127 * 128 + 127: two codes of 7 bits, as AVX2's products want them

struct Int8Cache {
    template <class S> static constexpr int kRows = S::kAttentionRows;

    // query . centre of each block, in 16 chains over d.
    template <class S, int R> static void centre_scores(const AttentionJob& job, int from, const Reach& reach, float (*out)[kPieceBlocks]) {
        for (int block = reach.first_block; block < reach.last_block; ++block) {
            for (int r = 0; r < R; ++r) {
                auto sum = S::splat(0.0f);
                if (job.centres) for (int d = 0; d < job.head_dim; d += 16) sum = S::fma(S::load(job.queries[from + r] + d), S::load(job.centres[block] + d), sum);
                out[r][block] = S::tree_sum(sum);
            }
        }
    }

    // scores[r][position] = query . centre + sum over groups of (codes . codes) * scale * scale, a chain over groups for each position.
    template <class S, int R> static void scores(const AttentionJob& job, int from, const Reach& reach, float (*out)[kPiecePositions]) {
        const int groups = padded_head(job.head_dim) / kGroup;
        float centre[R][kPieceBlocks];
        centre_scores<S, R>(job, from, reach, centre);
        for (int at = reach.first_block * kBlockPositions; at < reach.last_block * kBlockPositions; at += 32) {
            const uint8_t* block = job.keys[at / kBlockPositions];
            const auto* scales = reinterpret_cast<const uint16_t*>(block) + at % kBlockPositions;
            const uint8_t* codes = block + int8_key_scales(job.head_dim) + at % kBlockPositions * 4;
            const uint8_t* ahead = job.values[at / kBlockPositions] + (at % kBlockPositions ? job.head_dim * 32 : 0);
            typename S::F acc[R][2];
            for (int r = 0; r < R; ++r) for (auto& a : acc[r]) a = S::splat(centre[r][at / kBlockPositions]);
            for (int g = 0; g < groups; ++g, scales += kBlockPositions) {
                typename S::I dot[R][2];
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const auto start = S::kWideOffset ? S::template shift_left<7>(S::splat_int(job.codes[from + r][g * kQuantBlock].minus_sum)) : S::zero();
                    dot[r][0] = dot[r][1] = start;
                }
                for (int i = 0; i < kGroup / 4; ++i, codes += kBlockPositions * 4) {
                    fetch_lines<128>(ahead + (g * kGroup + 4 * i) * 32);
                    const auto k0 = S::load_bytes(codes), k1 = S::load_bytes(codes + 64);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        const int8_t* q = job.codes[from + r][g * kQuantBlock].codes + 4 * i;
                        dot[r][0] = S::dot_wide(dot[r][0], k0, q);
                        dot[r][1] = S::dot_wide(dot[r][1], k1, q);
                    }
                }
                const typename S::F scale[2] = {S::load_half(scales), S::load_half(scales + 16)};
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const auto q_scale = S::splat(job.codes[from + r][g * kQuantBlock].scale);
                    for (int i = 0; i < 2; ++i) acc[r][i] = S::fma(S::to_float(dot[r][i]), S::mul(scale[i], q_scale), acc[r][i]);
                }
            }
            for (int r = 0; r < R; ++r) for (int i = 0; i < 2; ++i) S::store(out[r] + at + i * 16, acc[r][i]);
        }
    }

    // The weights of one row over one block, times the values' scales, as two codes of 7 bits. Returns their scale.
    template <class S> static float weight_codes(const float* weights, const uint16_t* scales, int8_t* high, int8_t* low) {
        typename S::F scaled[kBlockPositions / 16];
        auto largest = S::splat(0.0f);
        for (int i = 0; i < kBlockPositions / 16; ++i) {
            scaled[i] = S::mul(S::load(weights + 16 * i), S::load_half(scales + 16 * i));
            largest = S::max(largest, scaled[i]);
        }
        const float maximum = S::tree_max(largest);
        const bool zeros = !(maximum > 1e-30f);
        const auto inverse = S::splat(zeros ? 0.0f : kWeightCodes / maximum);
        for (int i = 0; i < kBlockPositions / 16; ++i) {
            const auto code = S::to_int(S::mul(scaled[i], inverse));
            S::store_i8(high + 16 * i, S::template shift_right<7>(code));
            S::store_i8(low + 16 * i, S::low_seven(code));
        }
        return zeros ? 0.0f : maximum / kWeightCodes;
    }

    template <class S, int R, int C>
    static void columns(const AttentionJob& job, int from, const uint8_t* values, const int8_t (*high)[kBlockPositions], const int8_t (*low)[kBlockPositions],
                        const float* scale, const uint8_t* ahead, int first, int last, int d) {
        typename S::I sum[R][C], fine[R][C];
        for (int r = 0; r < R; ++r) for (int c = 0; c < C; ++c) sum[r][c] = fine[r][c] = S::zero();
        for (int p = first / 4 * 4; p < last; p += 4) {
            fetch_lines<64 * C>(ahead + static_cast<size_t>(p) * static_cast<size_t>(job.head_dim) + d * 4);
            const uint8_t* at = values + static_cast<size_t>(p) * static_cast<size_t>(job.head_dim) + d * 4;
            typename S::U v[C];
            for (int c = 0; c < C; ++c) v[c] = S::load_bytes(at + 64 * c);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
                for (int c = 0; c < C; ++c) {
                    sum[r][c] = S::dot_signed(sum[r][c], high[r] + p, v[c]);
                    fine[r][c] = S::dot_signed(fine[r][c], low[r] + p, v[c]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int c = 0; c < C; ++c) {
                float* out = job.out[from + r] + d + 16 * c;
                const auto total = S::add_int(S::template shift_left<7>(sum[r][c]), fine[r][c]);
                S::store(out, S::fma(S::to_float(total), S::splat(scale[r]), S::load(out)));
            }
        }
    }

    // out[r][d] = sum over blocks of (weight codes . value codes) * scale, a chain over blocks for each d.
    template <class S, int R> static void values(const AttentionJob& job, int from, const Reach& reach, const float (*weights)[kPiecePositions]) {
        for (int r = 0; r < R; ++r) for (int d = 0; d < job.head_dim; d += 16) S::store(job.out[from + r] + d, S::splat(0.0f));
        for (int block = reach.first_block; block < reach.last_block; ++block) {
            alignas(64) int8_t high[R][kBlockPositions], low[R][kBlockPositions];
            float scale[R];
            const int start = block * kBlockPositions;
            const auto* scales = reinterpret_cast<const uint16_t*>(job.values[block]);
            for (int r = 0; r < R; ++r) scale[r] = weight_codes<S>(weights[r] + start, scales, high[r], low[r]);
            const int first = reach.first > start ? reach.first - start : 0;
            const int last = reach.last - start < kBlockPositions ? reach.last - start : kBlockPositions;
            const uint8_t* codes = job.values[block] + int8_value_scales();
            constexpr int kColumns = R > 4 ? 1 : 2;
            const uint8_t* ahead = job.next_keys[block];
            int d = 0;
            for (; d + 16 * kColumns <= job.head_dim; d += 16 * kColumns) columns<S, R, kColumns>(job, from, codes, high, low, scale, ahead, first, last, d);
            for (; d < job.head_dim; d += 16) columns<S, R, 1>(job, from, codes, high, low, scale, ahead, first, last, d);
        }
    }
};

}  // namespace
}  // namespace draftsmith
