// AVX2 with FMA and F16C, one register: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "simd_slices.hpp"

namespace draftsmith {
namespace {

struct Avx2Slice {
    static constexpr const char* kName = "avx2";
    static constexpr int kLanes = 8;
    static constexpr int kMaxTokens = 4;
    static constexpr int kAttentionRows = 4;
    static constexpr int kWideOffset = 0;  // dot_wide() turns codes into signed values itself

    using F = __m256;
    using I = __m256i;
    using U = __m256i;

    static __m128i low_bytes(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
    static __m128i half_line(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static __m256i splat_four(const int8_t* x) { int32_t four; std::memcpy(&four, x, 4); return _mm256_set1_epi32(four); }

    static F splat(float x) { return _mm256_set1_ps(x); }
    static F load(const float* p) { return _mm256_loadu_ps(p); }
    static F load_half(const uint16_t* p) { return _mm256_cvtph_ps(half_line(p)); }
    static F load_bfloat(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_line(p)), 16)); }
    static F load_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low_bytes(p))); }
    static F load_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low_bytes(p))); }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
    static void store_half(uint16_t* p, F x) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static F add(F x, F y) { return _mm256_add_ps(x, y); }
    static F sub(F x, F y) { return _mm256_sub_ps(x, y); }
    static F mul(F x, F y) { return _mm256_mul_ps(x, y); }
    static F div(F x, F y) { return _mm256_div_ps(x, y); }
    static F fma(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
    static F fnma(F x, F y, F z) { return _mm256_fnmadd_ps(x, y, z); }
    static F max(F x, F y) { return _mm256_max_ps(x, y); }
    static F min(F x, F y) { return _mm256_min_ps(x, y); }
    static F abs(F x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
    static F select_less(F a, F b, F x, F y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
    static F keep_lanes(F x, int first, int last, F other) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1)), _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
        return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
    }
    static float tree_sum(F a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static float tree_max(F a) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static F to_float(I x) { return _mm256_cvtepi32_ps(x); }

    static I zero() { return _mm256_setzero_si256(); }
    static I splat_int(int32_t x) { return _mm256_set1_epi32(x); }
    static I to_int(F x) { return _mm256_cvtps_epi32(x); }
    static I add_int(I x, I y) { return _mm256_add_epi32(x, y); }
    static I low_seven(I x) { return _mm256_and_si256(x, _mm256_set1_epi32(127)); }
    template <int N> static I shift_right(I x) { return _mm256_srli_epi32(x, N); }
    template <int N> static I shift_left(I x) { return _mm256_slli_epi32(x, N); }
    static F power_of_two(I n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
    static void store_i8(int8_t* p, I x) {  // the lowest byte of every lane
        const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        const __m256i bytes = _mm256_shuffle_epi8(x, lowest);
        const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
    }
    static int32_t sum(I a) {
        __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        x = _mm_add_epi32(x, _mm_unpackhi_epi64(x, x));
        return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 1)));
    }

    static U load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static U splat_byte(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
    static U bit_and(U x, U y) { return _mm256_and_si256(x, y); }
    static U bit_or(U x, U y) { return _mm256_or_si256(x, y); }
    template <int N> static U shift_bytes_left(U x) { return _mm256_slli_epi16(x, N); }
    template <int N> static U shift_bytes_right(U x) { return _mm256_srli_epi16(x, N); }

    // Sums are made where they stand: GCC would keep all products, in memory, and add them up at the end.
    static I made(I sum) { __asm__("" : "+x"(sum)); return sum; }
    // Sums of two products each, in 16 bits: several may be added up before they are widened.
    static I pairs(U codes, const int8_t* x) { return _mm256_maddubs_epi16(codes, splat_four(x)); }
    static I add_pairs(I x, I y) { return made(_mm256_add_epi16(x, y)); }
    static I add_widened(I acc, I x) { return made(_mm256_add_epi32(acc, _mm256_madd_epi16(x, _mm256_set1_epi16(1)))); }

    // maddubs saturates at 16 bits: safe because codes are at most 63 (63 * 127 * 2 < 2^15) ...
    static I dot(I acc, U codes, const int8_t* x) { return add_widened(acc, pairs(codes, x)); }
    // ... and here because |value| <= 128 takes the unsigned side (128 * 127 * 2 < 2^15) and x is never -128.
    static I dot_wide(I acc, U codes, const int8_t* x) {
        const __m256i value = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
        return add_widened(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(value), _mm256_sign_epi8(splat_four(x), value)));
    }
    // x is 0..127 here and |value| <= 128: no saturation.
    static I dot_signed(I acc, const int8_t* x, U values) { return add_widened(acc, _mm256_maddubs_epi16(splat_four(x), values)); }
};

using Avx2 = Slices<Avx2Slice>;

}  // namespace
}  // namespace draftsmith
