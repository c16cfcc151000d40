// What the processor can do at most, for comparison: products that stay in registers, and bytes that are only read.
#pragma once

#include <cstddef>
#include <cstdint>

namespace draftsmith {
namespace {

constexpr int kChains = 12;  // sums that do not wait for one another: latency times width, and they fit the registers

// One turn of kChains operations. Spelled out, so that no compiler keeps the sums in memory.
template <class T, class Step> inline void turn(T (&s)[kChains], Step step) {
    step(s[0], 0), step(s[1], 1), step(s[2], 2), step(s[3], 3), step(s[4], 4), step(s[5], 5);
    step(s[6], 6), step(s[7], 7), step(s[8], 8), step(s[9], 9), step(s[10], 10), step(s[11], 11);
}

// 8-bit products by `rounds` turns of kChains instructions of 64; the sums go to out[kChains * 16].
template <class S> void peak_int8(size_t rounds, const int8_t* x, float* out) {
    typename S::I sums[kChains];
    turn(sums, [](typename S::I& sum, int) { sum = S::zero(); });
    auto codes = S::splat_byte(3);
    for (size_t i = 0; i < rounds; ++i) {
        __asm__ volatile("" : "+m"(codes));  // else products that are always the same are made only once
        turn(sums, [&](typename S::I& sum, int c) { sum = S::dot(sum, codes, x + 4 * c); });
    }
    turn(sums, [&](typename S::I& sum, int c) { S::store(out + 16 * c, S::to_float(sum)); });
}

// Fused multiply-adds of 16 floats.
template <class S> void peak_float(size_t rounds, const float* x, float* out) {
    typename S::F sums[kChains];
    turn(sums, [](typename S::F& sum, int) { sum = S::splat(0.0f); });
    const auto one = S::load(x);
    for (size_t i = 0; i < rounds; ++i) {
        turn(sums, [&](typename S::F& sum, int c) { sum = S::fma(one, S::splat(x[c]), sum); });
    }
    turn(sums, [&](typename S::F& sum, int c) { S::store(out + 16 * c, sum); });
}

// Reads every cache line of some memory once; returns something that depends on all of them.
template <class S> uint8_t read_lines(const uint8_t* data, size_t bytes) {
    auto a = S::splat_byte(0), b = a, c = a, d = a;
    for (size_t i = 0; i + 256 <= bytes; i += 256) {
        __builtin_prefetch(data + i + 4096);
        __builtin_prefetch(data + i + 4160);
        __builtin_prefetch(data + i + 4224);
        __builtin_prefetch(data + i + 4288);
        a = S::bit_or(a, S::load_bytes(data + i));
        b = S::bit_or(b, S::load_bytes(data + i + 64));
        c = S::bit_or(c, S::load_bytes(data + i + 128));
        d = S::bit_or(d, S::load_bytes(data + i + 192));
    }
    const auto all = S::bit_or(S::bit_or(a, b), S::bit_or(c, d));
    uint8_t bytes_of[sizeof all];
    __builtin_memcpy(bytes_of, &all, sizeof all);
    uint8_t result = 0;
    for (uint8_t byte : bytes_of) result |= byte;
    return result;
}

}  // namespace
}  // namespace draftsmith
