// Everything between the matrix products, once for all instruction sets: norms, activations, rotations, quantisation.
#pragma once

#include <cmath>

#include "formats.hpp"
#include "kernels.hpp"

namespace draftsmith {
namespace {

// e^x with a relative error below 2e-7: x = n ln 2 + r, |r| <= ln(2)/2, a polynomial of degree 6 in r (Taylor terms,
// the last rounded for the interval). Below -60 the result is 0: then no product with a half-precision value can underflow
// to a negative zero, and adding a masked position changes no bit. Above 88.3 it stays finite.
template <class S> inline typename S::F exp(typename S::F x) {
    const auto lowest = S::splat(-60.0f);
    const auto clamped = S::max(S::min(x, S::splat(88.37626f)), lowest);
    const auto n = S::to_int(S::mul(clamped, S::splat(1.44269504f)));
    const auto whole = S::to_float(n);
    auto r = S::fnma(whole, S::splat(0.693359375f), clamped);
    r = S::fnma(whole, S::splat(-2.12194440e-4f), r);
    auto p = S::splat(1.0f / 720.0f);
    p = S::fma(p, r, S::splat(1.0f / 120.0f));
    p = S::fma(p, r, S::splat(1.0f / 24.0f));
    p = S::fma(p, r, S::splat(1.0f / 6.0f));
    p = S::fma(p, r, S::splat(0.5f));
    p = S::fma(p, r, S::splat(1.0f));
    p = S::fma(p, r, S::splat(1.0f));
    return S::select_less(x, lowest, S::splat(0.0f), S::mul(p, S::power_of_two(n)));
}

template <class S> void rms_norm(const float* x, const float* weight, float* y, size_t n, float eps) {
    auto squares = S::splat(0.0f);
    for (size_t i = 0; i < n; i += 16) {
        const auto v = S::load(x + i);
        squares = S::fma(v, v, squares);
    }
    const float scale = 1.0f / std::sqrt(S::tree_sum(squares) / static_cast<float>(n) + eps);
    for (size_t i = 0; i < n; i += 16) S::store(y + i, S::mul(S::mul(S::load(x + i), S::splat(scale)), S::load(weight + i)));
}

// Symmetric: scale = largest magnitude / 127, codes rounded to nearest even. A group below 1e-30 counts as zeros.
template <class S> void quantise(const float* x, size_t n, const QuantRows& out, size_t row, size_t first_col) {
    for (size_t i = 0; i < n; i += kGroup) {
        const auto a = S::load(x + i), b = S::load(x + i + 16);
        const float largest = S::tree_max(S::max(S::abs(a), S::abs(b)));
        const bool zeros = !(largest > 1e-30f);
        const auto inverse = S::splat(zeros ? 0.0f : 127.0f / largest);
        const auto low = S::to_int(S::mul(a, inverse)), high = S::to_int(S::mul(b, inverse));
        QuantGroup& group = *out.at(row, (first_col + i) / kGroup);
        S::store_i8(group.codes, low);
        S::store_i8(group.codes + 16, high);
        const int32_t low_sum = S::sum(low), high_sum = S::sum(high);
        group.scale = zeros ? 0.0f : largest / 127.0f;
        group.sum = group.scale * static_cast<float>(low_sum + high_sum);
        group.minus_sum = -(low_sum + high_sum);
        group.minus_halves[0] = -low_sum;
        group.minus_halves[1] = -high_sum;
    }
}

template <class S> void silu_mul(float* gate, const float* up, size_t n) {
    const auto one = S::splat(1.0f);
    for (size_t i = 0; i < n; i += 16) {
        const auto g = S::load(gate + i);
        const auto activated = S::div(g, S::add(one, exp<S>(S::sub(S::splat(0.0f), g))));
        S::store(gate + i, S::mul(activated, S::load(up + i)));
    }
}

template <class S> void rope(float* head, const float* cos, const float* sin, size_t head_dim, float scale) {
    const size_t half = head_dim / 2;
    size_t i = 0;
    for (; i + 16 <= half; i += 16) {
        const auto low = S::load(head + i), high = S::load(head + half + i), c = S::load(cos + i), s = S::load(sin + i);
        S::store(head + i, S::mul(S::fnma(high, s, S::mul(low, c)), S::splat(scale)));
        S::store(head + half + i, S::mul(S::fma(low, s, S::mul(high, c)), S::splat(scale)));
    }
    for (; i < half; ++i) {  // head dimensions such as 80: the same operations, a lane at a time
        const float low = head[i], high = head[half + i];
        head[i] = __builtin_fmaf(-high, sin[i], low * cos[i]) * scale;
        head[half + i] = __builtin_fmaf(low, sin[i], high * cos[i]) * scale;
    }
}

template <class S> void add(float* x, const float* y, size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) S::store(x + i, S::add(S::load(x + i), S::load(y + i)));
    for (; i < n; ++i) x[i] += y[i];
}

// Beyond the range of f16 is its largest number: an infinity in the cache would spoil rows that give it the weight 0.
template <class S> void store_half(const float* x, uint16_t* y, size_t n) {
    const auto largest = S::splat(65504.0f), smallest = S::splat(-65504.0f);
    for (size_t i = 0; i < n; i += 16) S::store_half(y + i, S::min(S::max(S::load(x + i), smallest), largest));
}

template <class S> float store_codes(const float* x, int8_t* codes, size_t n) {
    auto most = S::splat(0.0f);
    for (size_t i = 0; i < n; i += 16) most = S::max(most, S::abs(S::load(x + i)));
    const float largest = S::tree_max(most);
    const bool zeros = !(largest > 1e-30f);
    const auto inverse = S::splat(zeros ? 0.0f : 127.0f / largest);
    for (size_t i = 0; i < n; i += 16) S::store_i8(codes + i, S::to_int(S::mul(S::load(x + i), inverse)));
    return zeros ? 0.0f : largest / 127.0f;
}

template <class S> void group_maxima(const float* row, size_t groups, float* out) {
    for (size_t i = 0; i < groups; ++i, row += kRowGroup) {
        auto most = S::load(row);
        for (int j = 16; j < kRowGroup; j += 16) most = S::max(most, S::load(row + j));
        out[i] = S::tree_max(most);
    }
}

template <class S> float exp_sum(const float* row, size_t n, float shift) {
    auto total = S::splat(0.0f);
    for (size_t i = 0; i < n; i += 16) total = S::add(total, exp<S>(S::sub(S::load(row + i), S::splat(shift))));
    return S::tree_sum(total);
}

}  // namespace
}  // namespace draftsmith
