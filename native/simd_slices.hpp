// Sixteen lanes made of several registers, for instruction sets whose registers are shorter. `L` is one register: kLanes
// lanes with the same operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace draftsmith {
namespace {

template <class L> struct Slices {
    using Slice = L;
    static constexpr int kLanes = 16;
    static constexpr int kSlices = 16 / L::kLanes;
    static constexpr const char* kName = L::kName;
    static constexpr int kMaxTokens = L::kMaxTokens;
    static constexpr int kTilesTogether = 1;
    static constexpr int kAttentionRows = L::kAttentionRows;
    static constexpr int kWideOffset = L::kWideOffset;

    struct F { typename L::F v[kSlices]; };
    struct I { typename L::I v[kSlices]; };
    struct U { typename L::U v[kSlices]; };

    // The registers one by one, spelled out: compilers keep in memory what loops go over.
    template <class R, class Op> static R each(Op op) {
        return [&]<int... N>(std::integer_sequence<int, N...>) { return R{{op(N)...}}; }(std::make_integer_sequence<int, kSlices>{});
    }

    static F splat(float x) { return each<F>([=](int) { return L::splat(x); }); }
    static F load(const float* p) { return each<F>([=](int i) { return L::load(p + L::kLanes * i); }); }
    static F load_half(const uint16_t* p) { return each<F>([=](int i) { return L::load_half(p + L::kLanes * i); }); }
    static F load_bfloat(const uint16_t* p) { return each<F>([=](int i) { return L::load_bfloat(p + L::kLanes * i); }); }
    static F load_u8(const uint8_t* p) { return each<F>([=](int i) { return L::load_u8(p + L::kLanes * i); }); }
    static F load_i8(const int8_t* p) { return each<F>([=](int i) { return L::load_i8(p + L::kLanes * i); }); }
    static void store(float* p, F a) { for (int i = 0; i < kSlices; ++i) L::store(p + L::kLanes * i, a.v[i]); }
    static void store_half(uint16_t* p, F a) { for (int i = 0; i < kSlices; ++i) L::store_half(p + L::kLanes * i, a.v[i]); }

    static F add(F a, F b) { return each<F>([&](int i) { return L::add(a.v[i], b.v[i]); }); }
    static F sub(F a, F b) { return each<F>([&](int i) { return L::sub(a.v[i], b.v[i]); }); }
    static F mul(F a, F b) { return each<F>([&](int i) { return L::mul(a.v[i], b.v[i]); }); }
    static F div(F a, F b) { return each<F>([&](int i) { return L::div(a.v[i], b.v[i]); }); }
    static F fma(F a, F b, F c) { return each<F>([&](int i) { return L::fma(a.v[i], b.v[i], c.v[i]); }); }
    static F fnma(F a, F b, F c) { return each<F>([&](int i) { return L::fnma(a.v[i], b.v[i], c.v[i]); }); }
    static F max(F a, F b) { return each<F>([&](int i) { return L::max(a.v[i], b.v[i]); }); }
    static F min(F a, F b) { return each<F>([&](int i) { return L::min(a.v[i], b.v[i]); }); }
    static F abs(F a) { return each<F>([&](int i) { return L::abs(a.v[i]); }); }
    static F select_less(F a, F b, F x, F y) { return each<F>([&](int i) { return L::select_less(a.v[i], b.v[i], x.v[i], y.v[i]); }); }
    static F keep_lanes(F a, int first, int last, F other) {
        return each<F>([&](int i) { return L::keep_lanes(a.v[i], first - L::kLanes * i, last - L::kLanes * i, other.v[i]); });
    }
    template <class Op> static typename L::F folded(F a, Op op) {
        for (int width = kSlices / 2; width > 0; width /= 2) for (int i = 0; i < width; ++i) a.v[i] = op(a.v[i], a.v[i + width]);
        return a.v[0];
    }
    static float tree_sum(F a) { return L::tree_sum(folded(a, L::add)); }
    static float tree_max(F a) { return L::tree_max(folded(a, L::max)); }
    static F to_float(I a) { return each<F>([&](int i) { return L::to_float(a.v[i]); }); }

    static I zero() { return each<I>([](int) { return L::zero(); }); }
    static I splat_int(int32_t x) { return each<I>([=](int) { return L::splat_int(x); }); }
    static I to_int(F a) { return each<I>([&](int i) { return L::to_int(a.v[i]); }); }
    static I add_int(I a, I b) { return each<I>([&](int i) { return L::add_int(a.v[i], b.v[i]); }); }
    static I low_seven(I a) { return each<I>([&](int i) { return L::low_seven(a.v[i]); }); }
    template <int N> static I shift_right(I a) { return each<I>([&](int i) { return L::template shift_right<N>(a.v[i]); }); }
    template <int N> static I shift_left(I a) { return each<I>([&](int i) { return L::template shift_left<N>(a.v[i]); }); }
    static F power_of_two(I n) { return each<F>([&](int i) { return L::power_of_two(n.v[i]); }); }
    static void store_i8(int8_t* p, I a) { for (int i = 0; i < kSlices; ++i) L::store_i8(p + L::kLanes * i, a.v[i]); }
    static int32_t sum(I a) {
        auto total = a.v[0];
        for (int i = 1; i < kSlices; ++i) total = L::add_int(total, a.v[i]);
        return L::sum(total);
    }

    static U load_bytes(const void* p) { return each<U>([=](int i) { return L::load_bytes(static_cast<const uint8_t*>(p) + 4 * L::kLanes * i); }); }
    static U splat_byte(uint8_t x) { return each<U>([=](int) { return L::splat_byte(x); }); }
    static U bit_or(U a, U b) { return each<U>([&](int i) { return L::bit_or(a.v[i], b.v[i]); }); }

    static I dot(I acc, U codes, const int8_t* x) { return each<I>([&](int i) { return L::dot(acc.v[i], codes.v[i], x); }); }
    static I dot_wide(I acc, U codes, const int8_t* x) { return each<I>([&](int i) { return L::dot_wide(acc.v[i], codes.v[i], x); }); }
    static I dot_signed(I acc, const int8_t* x, U values) { return each<I>([&](int i) { return L::dot_signed(acc.v[i], x, values.v[i]); }); }
};

}  // namespace
}  // namespace draftsmith
