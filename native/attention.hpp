// Attention over one block of 64 positions, and the fold of blocks, once for all instruction sets.
//
// A row's result is: for each block in order, scores, their maximum, exponentials and weighted values; then the blocks
// are folded in order (the online softmax of arXiv:1805.02867). Which rows share a call, or which thread takes which
// block, does not enter.
#pragma once

#include <type_traits>

#include "elementwise.hpp"
#include "kernels.hpp"

namespace draftsmith {
namespace {

template <class S, class T> inline typename S::F load_kv(const T* p) {
    if constexpr (std::is_same_v<T, float>) return S::load(p);
    else return S::load_half(p);
}

constexpr int kLaneGroups = kBlockPositions / 16;

// scores[r][position] = sum over d of query[r][d] * key[d][position], a chain over d for each position.
template <class S, class T, int R> inline void block_scores(const AttentionJob& job, float (*scores)[kBlockPositions]) {
    const auto* keys = static_cast<const T*>(job.keys);
    for (int part = 0; part < kLaneGroups; part += 2) {
        typename S::F acc[R][2];
        for (auto& row : acc) for (auto& a : row) a = S::splat(0.0f);
        for (int d = 0; d < job.head_dim; ++d) {
            const T* at = keys + static_cast<size_t>(d) * kBlockPositions + part * 16;
            const auto k0 = load_kv<S>(at), k1 = load_kv<S>(at + 16);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const auto q = S::splat(job.queries[r][d]);
                acc[r][0] = S::fma(k0, q, acc[r][0]);
                acc[r][1] = S::fma(k1, q, acc[r][1]);
            }
        }
        for (int r = 0; r < R; ++r) for (int i = 0; i < 2; ++i) S::store(scores[r] + (part + i) * 16, acc[r][i]);
    }
}

// Scores become exp(score - maximum), 0 outside the row's window.
template <class S> inline void block_softmax(const AttentionJob& job, int r, float* scores) {
    const auto minus_infinity = S::splat(-__builtin_inff());
    typename S::F lanes[kLaneGroups];
    auto largest = minus_infinity;
    for (int i = 0; i < kLaneGroups; ++i) {
        lanes[i] = S::keep_lanes(S::load(scores + 16 * i), job.first[r] - 16 * i, job.last[r] - 16 * i, minus_infinity);
        largest = S::max(largest, lanes[i]);
    }
    const float maximum = S::tree_max(largest);
    auto sum = S::splat(0.0f);
    for (int i = 0; i < kLaneGroups; ++i) {
        const auto weight = exp<S>(S::sub(lanes[i], S::splat(maximum)));
        S::store(scores + 16 * i, weight);
        sum = S::add(sum, weight);
    }
    job.partial_max[r] = maximum;
    job.partial_sum[r] = S::tree_sum(sum);
}

// out[r][d] = sum over the row's positions of weight * value, a chain over positions for each d.
template <class S, class T, int R, int C> inline void block_values(const AttentionJob& job, const float (*weights)[kBlockPositions], int d) {
    const auto* values = static_cast<const T*>(job.values);
    int first = job.first[0], last = job.last[0];
    for (int r = 1; r < R; ++r) {
        first = job.first[r] < first ? job.first[r] : first;
        last = job.last[r] > last ? job.last[r] : last;
    }
    typename S::F acc[R][C];
    for (auto& row : acc) for (auto& a : row) a = S::splat(0.0f);
    for (int p = first; p < last; ++p) {
        const T* at = values + static_cast<size_t>(p) * static_cast<size_t>(job.head_dim) + d;
        typename S::F v[C];
        for (int c = 0; c < C; ++c) v[c] = load_kv<S>(at + 16 * c);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const auto weight = S::splat(weights[r][p]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) acc[r][c] = S::fma(v[c], weight, acc[r][c]);
        }
    }
    for (int r = 0; r < R; ++r) for (int c = 0; c < C; ++c) S::store(job.partial_out[r] + d + 16 * c, acc[r][c]);
}

template <class S, class T, int R> inline void attend_rows(const AttentionJob& job) {
    alignas(64) float scores[R][kBlockPositions];
    block_scores<S, T, R>(job, scores);
    for (int r = 0; r < R; ++r) block_softmax<S>(job, r, scores[r]);
    int d = 0;
    for (; d + 64 <= job.head_dim; d += 64) block_values<S, T, R, 4>(job, scores, d);
    for (; d < job.head_dim; d += 16) block_values<S, T, R, 1>(job, scores, d);
}

template <class S, class T> void attend(const AttentionJob& job) {
    switch (job.rows) {
        case 1: attend_rows<S, T, 1>(job); break;
        case 2: attend_rows<S, T, 2>(job); break;
        case 3: attend_rows<S, T, 3>(job); break;
        default: attend_rows<S, T, 4>(job); break;
    }
}

template <class S> inline float exp_one(float x) {
    float lane[16];
    S::store(lane, exp<S>(S::splat(x)));
    return lane[0];
}

template <class S> void attention_fold(float* m, float* l, float* o, float block_m, float block_l, const float* block_o, size_t head_dim) {
    const float largest = *m > block_m ? *m : block_m;
    const float keep = exp_one<S>(*m - largest), take = exp_one<S>(block_m - largest);
    *m = largest;
    *l = __builtin_fmaf(*l, keep, block_l * take);
    for (size_t d = 0; d < head_dim; d += 16) {
        S::store(o + d, S::fma(S::load(o + d), S::splat(keep), S::mul(S::load(block_o + d), S::splat(take))));
    }
}

template <class S> void attention_finish(const float* o, float l, float* out, size_t head_dim) {
    for (size_t d = 0; d < head_dim; d += 16) S::store(out + d, S::div(S::load(o + d), S::splat(l)));
}

}  // namespace
}  // namespace draftsmith
