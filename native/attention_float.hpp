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

// Fetches what will be read soon while the keys of half a block are: that half of the block's values, and of the next keys.
// Blocks lie far from one another, so that the processor's own prefetching would begin anew with each.
struct Ahead {
    const uint8_t* values;
    const uint8_t* keys;

    Ahead(const AttentionJob& job, int at, const Reach& reach) {
        const int block = at / kBlockPositions;
        const size_t half = at % kBlockPositions ? job.half_bytes : 0;
        values = job.values[block] + half;
        keys = (block + 1 < reach.last_block ? job.keys[block + 1] : job.values[block]) + half;
    }
    void fetch(int offset) const {
        __builtin_prefetch(values + offset);
        __builtin_prefetch(keys + offset);
    }
};

template <class T> struct FloatCache {
    template <class S> static constexpr int kRows = S::kAttentionRows;

    template <class S> static typename S::F load(const T* p) {
        if constexpr (std::is_same_v<T, float>) return S::load(p);
        else return S::load_half(p);
    }

    // scores[r][position] = sum over d of query[r][d] * key[d][position], a chain over d for each position.
    template <class S, int R> static void scores(const AttentionJob& job, int from, const Reach& reach, float (*out)[kPiecePositions]) {
        for (int at = reach.first_block * kBlockPositions; at < reach.last_block * kBlockPositions; at += 32) {
            const T* keys = reinterpret_cast<const T*>(job.keys[at / kBlockPositions]) + at % kBlockPositions;
            const Ahead ahead(job, at, reach);
            typename S::F acc[R][2];
            for (auto& row : acc) for (auto& a : row) a = S::splat(0.0f);
            for (int d = 0; d < job.head_dim; ++d, keys += kBlockPositions) {
                ahead.fetch(d * static_cast<int>(sizeof(T)) * 32);
                const auto k0 = load<S>(keys), k1 = load<S>(keys + 16);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const auto q = S::splat(job.queries[from + r][d]);
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
        for (int p = reach.first; p < reach.last; ++p) {
            const T* at = reinterpret_cast<const T*>(job.values[p / kBlockPositions]) + static_cast<size_t>(p % kBlockPositions) * static_cast<size_t>(job.head_dim) + d;
            typename S::F v[C];
            for (int c = 0; c < C; ++c) v[c] = load<S>(at + 16 * c);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const auto weight = S::splat(weights[r][p]);
#pragma GCC unroll 4
                for (int c = 0; c < C; ++c) acc[r][c] = S::fma(v[c], weight, acc[r][c]);
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
