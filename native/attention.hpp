// Attention of some query rows over one piece of the context, and the fold of pieces, once for all instruction sets.
//
// The context is cut into pieces at fixed positions. A row's result is: for each piece in order, scores, their maximum,
// exponentials and weighted values; then the pieces are folded in order (the online softmax of arXiv:1805.02867). Which rows
// share a call, and which thread takes which piece, does not enter.
#pragma once

#include "attention_float.hpp"
#include "attention_int8.hpp"

namespace draftsmith {
namespace {

// Scores become exp(score - maximum), 0 outside the row's window.
template <class S> inline void piece_softmax(const AttentionJob& job, int r, const Reach& reach, float* scores) {
    const auto minus_infinity = S::splat(-__builtin_inff());
    auto largest = minus_infinity;
    for (int at = reach.first_block * kBlockPositions; at < reach.last_block * kBlockPositions; at += 16) {
        const auto lanes = S::keep_lanes(S::load(scores + at), job.first[r] - at, job.last[r] - at, minus_infinity);
        S::store(scores + at, lanes);
        largest = S::max(largest, lanes);
    }
    const float maximum = S::tree_max(largest);
    auto sum = S::splat(0.0f);
    for (int at = reach.first_block * kBlockPositions; at < reach.last_block * kBlockPositions; at += 16) {
        const auto weight = exp<S>(S::sub(S::load(scores + at), S::splat(maximum)));
        S::store(scores + at, weight);
        sum = S::add(sum, weight);
    }
    job.maxima[r] = maximum;
    job.sums[r] = S::tree_sum(sum);
}

template <class S, class Cache, int R> inline void attend_rows(const AttentionJob& job, int from) {
    alignas(64) float scores[R][kPiecePositions];
    const Reach reach = reach_of(job, from, R);
    Cache::template scores<S, R>(job, from, reach, scores);
    for (int r = 0; r < R; ++r) piece_softmax<S>(job, from + r, reach, scores[r]);
    Cache::template values<S, R>(job, from, reach, scores);
}

template <class S, class Cache> void attend(const AttentionJob& job) {
    constexpr int kRows = Cache::template kRows<S>;
    int from = 0;
    for (; from + kRows <= job.rows; from += kRows) attend_rows<S, Cache, kRows>(job, from);
    const auto run = [&]<int R>() { attend_rows<S, Cache, R>(job, from); };
    switch (job.rows - from) {
        case 0: break;
        case 1: run.template operator()<1>(); break;
        case 2: run.template operator()<2>(); break;
        case 3: run.template operator()<3>(); break;
        default:
            if constexpr (kRows > 4) {
                switch (job.rows - from) {
                    case 4: run.template operator()<4>(); break;
                    case 5: run.template operator()<5>(); break;
                    case 6: run.template operator()<6>(); break;
                    default: run.template operator()<7>(); break;
                }
            }
    }
}

template <class S> inline float exp_one(float x) {
    float lane[16];
    S::store(lane, exp<S>(S::splat(x)));
    return lane[0];
}

template <class S> void attention_fold(float* m, float* l, float* o, float piece_m, float piece_l, const float* piece_o, size_t head_dim) {
    const bool new_maximum = piece_m > *m;
    const float keep = new_maximum ? exp_one<S>(*m - piece_m) : 1.0f, take = new_maximum ? 1.0f : exp_one<S>(piece_m - *m);
    if (new_maximum) *m = piece_m;
    *l = __builtin_fmaf(*l, keep, piece_l * take);
    for (size_t d = 0; d < head_dim; d += 16) {
        S::store(o + d, S::fma(S::load(o + d), S::splat(keep), S::mul(S::load(piece_o + d), S::splat(take))));
    }
}

template <class S> void attention_finish(const float* o, float l, float* out, size_t head_dim) {
    for (size_t d = 0; d < head_dim; d += 16) S::store(out + d, S::div(S::load(o + d), S::splat(l)));
}

}  // namespace
}  // namespace draftsmith
