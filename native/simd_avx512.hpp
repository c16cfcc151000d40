// AVX-512 (F, BW, VL, DQ) with VNNI: one register holds sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace draftsmith {
namespace {

struct Avx512 {
    using Slice = Avx512;  // what a register holds: here all sixteen lanes
    static constexpr int kLanes = 16;
    static constexpr const char* kName = "avx512";
    static constexpr int kMaxTokens = 8;
    static constexpr int kTilesTogether = 2;  // tiles that it holds with them, when there are many rows
    static constexpr int kAttentionRows = 8;
    static constexpr int kWideOffset = 128;

    using F = __m512;
    using I = __m512i;
    using U = __m512i;

    static F splat(float x) { return _mm512_set1_ps(x); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
    static F load_bfloat(const uint16_t* p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
    }
    static F load_u8(const uint8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
    static F load_i8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))); }
    static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
    static void store_half(uint16_t* p, F a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F select_less(F a, F b, F x, F y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
    static F keep_lanes(F a, int first, int last, F other) {
        const uint32_t below_last = last >= 16 ? 0xffffu : (last <= 0 ? 0u : (1u << last) - 1);
        const uint32_t below_first = first >= 16 ? 0xffffu : (first <= 0 ? 0u : (1u << first) - 1);
        return _mm512_mask_blend_ps(static_cast<__mmask16>(below_last & ~below_first), other, a);
    }
    static float tree_sum8(__m256 a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    static float tree_max8(__m256 a) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }
    static float tree_sum(F a) { return tree_sum8(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }
    static float tree_max(F a) { return tree_max8(_mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1))); }
    static F to_float(I a) { return _mm512_cvtepi32_ps(a); }

    static I zero() { return _mm512_setzero_si512(); }
    static I splat_int(int32_t x) { return _mm512_set1_epi32(x); }
    static I to_int(F a) { return _mm512_cvtps_epi32(a); }
    static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
    static I low_seven(I a) { return _mm512_and_si512(a, _mm512_set1_epi32(127)); }
    template <int N> static I shift_right(I a) { return _mm512_srli_epi32(a, N); }
    template <int N> static I shift_left(I a) { return _mm512_slli_epi32(a, N); }
    static F power_of_two(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)); }
    static void store_i8(int8_t* p, I a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a)); }
    static int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }

    static U load_bytes(const void* p) { return _mm512_loadu_si512(p); }
    static U splat_byte(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
    static U bit_and(U a, U b) { return _mm512_and_si512(a, b); }
    static U bit_or(U a, U b) { return _mm512_or_si512(a, b); }
    template <int N> static U shift_bytes_left(U a) { return _mm512_slli_epi16(a, N); }
    template <int N> static U shift_bytes_right(U a) { return _mm512_srli_epi16(a, N); }

    static I dot(I acc, U codes, const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        return _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(four));
    }
    static I dot_wide(I acc, U codes, const int8_t* x) { return dot(acc, codes, x); }
    static I dot_signed(I acc, const int8_t* x, U values) {
        int32_t four;
        std::memcpy(&four, x, 4);
        return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(four), values);
    }
};

}  // namespace
}  // namespace draftsmith
