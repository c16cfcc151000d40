// Scores and weighted values over keys and values in f16 or f32: keys [D][64], values [64][D] in each block.
#pragma once

#include <type_traits>

#include "elementwise.hpp"
#include "kernels.hpp"

namespace draftsmith {
namespace {

// What some rows of a job see together, in positions and in blocks of the piece.
struct Reach { int first, last, first_block, last_block; };

inline Reach reach_of(const AttentionJob& job, int from, int rows) {
    int first = job.first[from], last = job.last[from];
    for (int r = from + 1; r < from + rows; ++r) {
        first = job.first[r] < first ? job.first[r] : first;
        last = job.last[r] > last ? job.last[r] : last;
    }
    return {first, last, first / kBlockPositions, (last + kBlockPositions - 1) / kBlockPositions};
}

// Memory is to be busy all the time: while the keys of a piece are read its values are fetched, and while the values are, the
// keys of the next piece. Blocks lie far from one another, so that the processor's own prefetching would begin anew with each.
template <int BYTES> inline void fetch_lines(const uint8_t* at) {
    for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(at + line);
}

template <class T> struct FloatCache {
    template <class S> static constexpr int kRows = S::kAttentionRows;

    template <class S> static typename S::F load(const T* p) {
        if constexpr (std::is_same_v<T, float>) return S::load(p);
        else return S::load_half(p);
    }

    // scores[r][position] = sum over d of query[r][d] * key[d][position], a chain over d for each position. The queries lie
    // side by side for it: one address for all rows.
    template <class S, int R> static void scores(const AttentionJob& job, int from, const Reach& reach, float (*out)[kPiecePositions]) {
        alignas(64) float queries[kMaxHeadDim][R];
        for (int r = 0; r < R; ++r) for (int d = 0; d < job.head_dim; ++d) queries[d][r] = job.queries[from + r][d];
        for (int at = reach.first_block * kBlockPositions; at < reach.last_block * kBlockPositions; at += 32) {
            const T* keys = reinterpret_cast<const T*>(job.keys[at / kBlockPositions]) + at % kBlockPositions;
            const uint8_t* ahead = job.values[at / kBlockPositions] + (at % kBlockPositions ? job.head_dim * 32 * sizeof(T) : 0);
            typename S::F acc[R][2];
            for (auto& row : acc) for (auto& a : row) a = S::splat(0.0f);
            for (int d = 0; d < job.head_dim; ++d, keys += kBlockPositions, ahead += 32 * sizeof(T)) {
                fetch_lines<32 * sizeof(T)>(ahead);
                const auto k0 = load<S>(keys), k1 = load<S>(keys + 16);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const auto q = S::splat(queries[d][r]);
                    acc[r][0] = S::fma(k0, q, acc[r][0]);
                    acc[r][1] = S::fma(k1, q, acc[r][1]);
                }
            }
            for (int r = 0; r < R; ++r) for (int i = 0; i < 2; ++i) S::store(out[r] + at + i * 16, acc[r][i]);
        }
    }

    // out[r][d ..] = sum over the piece of weight * value, a chain over positions for each d.
    template <class S, int R, int C> static void columns(const AttentionJob& job, int from, const Reach& reach, const float (*weights)[kPiecePositions], int d) {
        typename S::F acc[R][C];
        for (auto& row : acc) for (auto& a : row) a = S::splat(0.0f);
        for (int block = reach.first_block; block < reach.last_block; ++block) {
            const int start = block * kBlockPositions, first = reach.first > start ? reach.first : start;
            const int last = reach.last < start + kBlockPositions ? reach.last : start + kBlockPositions;
            const T* at = reinterpret_cast<const T*>(job.values[block]) + static_cast<size_t>(first - start) * static_cast<size_t>(job.head_dim) + d;
            const uint8_t* ahead = job.next_keys[block] + static_cast<size_t>(d) * kBlockPositions * sizeof(T);
            for (int p = first; p < last; ++p, at += job.head_dim, ahead += 16 * C * sizeof(T)) {
                fetch_lines<16 * C * sizeof(T)>(ahead);
                typename S::F v[C];
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) v[c] = load<S>(at + 16 * c);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const auto weight = S::splat(weights[r][p]);
#pragma GCC unroll 4
                    for (int c = 0; c < C; ++c) acc[r][c] = S::fma(v[c], weight, acc[r][c]);
                }
            }
        }
        for (int r = 0; r < R; ++r) for (int c = 0; c < C; ++c) S::store(job.out[from + r] + d + 16 * c, acc[r][c]);
    }

    template <class S, int R> static void values(const AttentionJob& job, int from, const Reach& reach, const float (*weights)[kPiecePositions]) {
        constexpr int kColumns = R > 4 ? 2 : 4;
        int d = 0;
        for (; d + 16 * kColumns <= job.head_dim; d += 16 * kColumns) columns<S, R, kColumns>(job, from, reach, weights, d);
        for (; d < job.head_dim; d += 16) columns<S, R, 1>(job, from, reach, weights, d);
    }
};

}  // namespace
}  // namespace draftsmith
