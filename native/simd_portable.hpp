// The specification: sixteen lanes as plain loops. Every other instruction set must give the same bits.
//
// A "simd" struct names three vector types and the operations on them:
//   F  16 float32 lanes      I  16 int32 lanes      U  64 uint8 lanes (16 rows x 4 consecutive columns)
// All floating-point operations round once, to nearest even; fma() is fused. Nothing may be contracted or reordered
// (the files that include this are compiled with -ffp-contract=off).
#pragma once

#include <cstdint>

#include "half.hpp"

namespace draftsmith {
namespace {

struct Portable {
    using Slice = Portable;  // what a register holds: here all sixteen lanes
    static constexpr int kLanes = 16;
    static constexpr const char* kName = "portable";
    static constexpr int kMaxTokens = 4;     // rows of activations that a matmul holds in registers
    static constexpr int kTilesTogether = 1;  // tiles that it holds with them, when there are many rows
    static constexpr int kAttentionRows = 4; // rows of queries that attention holds in registers
    static constexpr int kWideOffset = 128;  // dot_wide() takes codes as stored, value + 128

    struct F { float v[16]; };
    struct I { int32_t v[16]; };
    struct U { uint8_t v[64]; };

    template <class Op> static F map(Op op) { F r; for (int i = 0; i < 16; ++i) r.v[i] = op(i); return r; }
    template <class Op> static I map_int(Op op) { I r; for (int i = 0; i < 16; ++i) r.v[i] = op(i); return r; }
    template <class Op> static U map_bytes(Op op) { U r; for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(op(i)); return r; }

    static F splat(float x) { return map([=](int) { return x; }); }
    static F load(const float* p) { return map([=](int i) { return p[i]; }); }
    static F load_half(const uint16_t* p) { return map([=](int i) { return half_to_float(p[i]); }); }
    static F load_bfloat(const uint16_t* p) { return map([=](int i) { return bfloat_to_float(p[i]); }); }
    static F load_u8(const uint8_t* p) { return map([=](int i) { return static_cast<float>(p[i]); }); }
    static F load_i8(const int8_t* p) { return map([=](int i) { return static_cast<float>(p[i]); }); }
    static void store(float* p, F a) { for (int i = 0; i < 16; ++i) p[i] = a.v[i]; }
    static void store_half(uint16_t* p, F a) { for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]); }

    static F add(F a, F b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
    static F sub(F a, F b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
    static F mul(F a, F b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
    static F div(F a, F b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
    static F fma(F a, F b, F c) { return map([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); }); }    // ab + c
    static F fnma(F a, F b, F c) { return map([&](int i) { return __builtin_fmaf(-a.v[i], b.v[i], c.v[i]); }); }  // c - ab
    static F max(F a, F b) { return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
    static F min(F a, F b) { return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
    static F abs(F a) { return map([&](int i) { return __builtin_fabsf(a.v[i]); }); }
    // x where a < b, else y
    static F select_less(F a, F b, F x, F y) { return map([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; }); }
    // a in lanes first <= i < last, other elsewhere
    static F keep_lanes(F a, int first, int last, F other) {
        return map([&](int i) { return i >= first && i < last ? a.v[i] : other.v[i]; });
    }
    // Sixteen lanes to one, in one tree: lane i takes in lane i + 8, then + 4, + 2, + 1.
    template <class Op> static float tree(F a, Op op) {
        for (int width = 8; width > 0; width /= 2) for (int i = 0; i < width; ++i) a.v[i] = op(a.v[i], a.v[i + width]);
        return a.v[0];
    }
    static float tree_sum(F a) { return tree(a, [](float x, float y) { return x + y; }); }
    static float tree_max(F a) { return tree(a, [](float x, float y) { return x > y ? x : y; }); }
    static F to_float(I a) { return map([&](int i) { return static_cast<float>(a.v[i]); }); }

    static I zero() { return I{}; }
    static I splat_int(int32_t x) { return map_int([=](int) { return x; }); }
    static I to_int(F a) { return map_int([&](int i) { return static_cast<int32_t>(__builtin_nearbyintf(a.v[i])); }); }
    static I add_int(I a, I b) { return map_int([&](int i) { return a.v[i] + b.v[i]; }); }
    static I low_seven(I a) { return map_int([&](int i) { return a.v[i] & 127; }); }
    template <int N> static I shift_right(I a) { return map_int([&](int i) { return a.v[i] >> N; }); }  // of values >= 0
    template <int N> static I shift_left(I a) { return map_int([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << N); }); }
    static F power_of_two(I n) { return map([&](int i) { return bits_to_float(static_cast<uint32_t>(n.v[i] + 127) << 23); }); }
    static void store_i8(int8_t* p, I a) { for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]); }
    static int32_t sum(I a) { int32_t s = 0; for (int i = 0; i < 16; ++i) s += a.v[i]; return s; }

    static U load_bytes(const void* p) { const auto* b = static_cast<const uint8_t*>(p); return map_bytes([=](int i) { return b[i]; }); }
    static U splat_byte(uint8_t x) { return map_bytes([=](int) { return x; }); }
    static U bit_and(U a, U b) { return map_bytes([&](int i) { return a.v[i] & b.v[i]; }); }
    static U bit_or(U a, U b) { return map_bytes([&](int i) { return a.v[i] | b.v[i]; }); }
    // Bits that leave a byte may enter its neighbour on other instruction sets: always mask afterwards.
    template <int N> static U shift_bytes_left(U a) { return map_bytes([&](int i) { return a.v[i] << N; }); }
    template <int N> static U shift_bytes_right(U a) { return map_bytes([&](int i) { return a.v[i] >> N; }); }

    // acc[row] += sum over j of codes[4 row + j] * x[j]; exact. dot() needs codes <= 63, dot_wide() takes any.
    static I dot(I acc, U codes, const int8_t* x) {
        return map_int([&](int i) {
            int32_t s = acc.v[i];
            for (int j = 0; j < 4; ++j) s += static_cast<int32_t>(codes.v[4 * i + j]) * x[j];
            return s;
        });
    }
    static I dot_wide(I acc, U codes, const int8_t* x) { return dot(acc, codes, x); }
    // acc[row] += sum over j of x[j] * values[4 row + j], the values signed and x in 0..127.
    static I dot_signed(I acc, const int8_t* x, U values) {
        return map_int([&](int i) {
            int32_t s = acc.v[i];
            for (int j = 0; j < 4; ++j) s += static_cast<int32_t>(x[j]) * static_cast<int8_t>(values.v[4 * i + j]);
            return s;
        });
    }
};

}  // namespace
}  // namespace draftsmith
