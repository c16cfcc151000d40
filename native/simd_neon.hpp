// AArch64 with the dot-product instructions (Armv8.2 and on), one register: four lanes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "simd_slices.hpp"

namespace draftsmith {
namespace {

struct NeonSlice {
    static constexpr const char* kName = "neon";
    static constexpr int kLanes = 4;
    static constexpr int kMaxTokens = 4;
    static constexpr int kAttentionRows = 4;
    static constexpr int kWideOffset = 0;  // dot_wide() turns codes into signed values itself

    using F = float32x4_t;
    using I = int32x4_t;
    using U = uint8x16_t;

    static uint32_t four_bytes(const void* p) { uint32_t four; std::memcpy(&four, p, 4); return four; }

    static F splat(float x) { return vdupq_n_f32(x); }
    static F load(const float* p) { return vld1q_f32(p); }
    static F load_half(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
    static F load_bfloat(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
    static F load_u8(const uint8_t* p) { return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four_bytes(p))))))); }
    static F load_i8(const int8_t* p) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four_bytes(p))))))); }
    static void store(float* p, F a) { vst1q_f32(p, a); }
    static void store_half(uint16_t* p, F a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }

    static F add(F a, F b) { return vaddq_f32(a, b); }
    static F sub(F a, F b) { return vsubq_f32(a, b); }
    static F mul(F a, F b) { return vmulq_f32(a, b); }
    static F div(F a, F b) { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
    // Not the instructions of these names: they choose otherwise where one is not a number, or both are zeros.
    static F max(F a, F b) { return select_less(b, a, a, b); }
    static F min(F a, F b) { return select_less(a, b, a, b); }
    static F abs(F a) { return vabsq_f32(a); }
    static F select_less(F a, F b, F x, F y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
    static F keep_lanes(F a, int first, int last, F other) {
        static constexpr int32_t kNumbers[4] = {0, 1, 2, 3};
        const int32x4_t lane = vld1q_s32(kNumbers);
        return vbslq_f32(vandq_u32(vcgeq_s32(lane, vdupq_n_s32(first)), vcltq_s32(lane, vdupq_n_s32(last))), a, other);
    }
    static float tree_sum(F a) {
        const float32x2_t x = vadd_f32(vget_low_f32(a), vget_high_f32(a));
        return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
    }
    static float tree_max(F a) {
        const F x = max(a, vextq_f32(a, a, 2));
        return vgetq_lane_f32(max(x, vextq_f32(x, x, 1)), 0);
    }
    static F to_float(I a) { return vcvtq_f32_s32(a); }

    static I zero() { return vdupq_n_s32(0); }
    static I splat_int(int32_t x) { return vdupq_n_s32(x); }
    static I to_int(F a) { return vcvtnq_s32_f32(a); }
    static I add_int(I a, I b) { return vaddq_s32(a, b); }
    static I low_seven(I a) { return vandq_s32(a, vdupq_n_s32(127)); }
    template <int N> static I shift_right(I a) { return vshrq_n_s32(a, N); }
    template <int N> static I shift_left(I a) { return vshlq_n_s32(a, N); }
    static F power_of_two(I n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
    static void store_i8(int8_t* p, I a) {
        const int16x4_t narrow = vmovn_s32(a);
        const uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(narrow, narrow))), 0);
        std::memcpy(p, &four, 4);
    }
    static int32_t sum(I a) { return vaddvq_s32(a); }

    static U load_bytes(const void* p) { return vld1q_u8(static_cast<const uint8_t*>(p)); }
    static U splat_byte(uint8_t x) { return vdupq_n_u8(x); }
    static U bit_and(U a, U b) { return vandq_u8(a, b); }
    static U bit_or(U a, U b) { return vorrq_u8(a, b); }
    template <int N> static U shift_bytes_left(U a) { return vshlq_n_u8(a, N); }
    template <int N> static U shift_bytes_right(U a) { return vshrq_n_u8(a, N); }

    // Both factors signed: codes are at most 63 ...
    static I dot(I acc, U codes, const int8_t* x) {
        return vdotq_s32(acc, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u32(vdupq_n_u32(four_bytes(x))));
    }
    // ... and value + 128 with its highest bit turned over is the value.
    static I dot_wide(I acc, U codes, const int8_t* x) { return dot(acc, veorq_u8(codes, vdupq_n_u8(0x80)), x); }
    static I dot_signed(I acc, const int8_t* x, U values) { return dot(acc, values, x); }
};

using Neon = Slices<NeonSlice>;

}  // namespace
}  // namespace draftsmith
