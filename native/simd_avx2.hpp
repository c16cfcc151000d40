// AVX2 with FMA and F16C: two registers hold sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace draftsmith {
namespace {

struct Avx2 {
    static constexpr const char* kName = "avx2";
    static constexpr int kMaxTokens = 4;
    static constexpr int kAttentionRows = 4;
    static constexpr int kWideOffset = 0;  // dot_wide() turns codes into signed values itself

    struct F { __m256 a, b; };
    struct I { __m256i a, b; };
    using U = I;

    static __m128i low_bytes(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
    static __m128i half_line(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
    static __m256 widen_bfloat(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_line(p)), 16)); }

    static F splat(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
    static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static F load_half(const uint16_t* p) { return {_mm256_cvtph_ps(half_line(p)), _mm256_cvtph_ps(half_line(p + 8))}; }
    static F load_bfloat(const uint16_t* p) { return {widen_bfloat(p), widen_bfloat(p + 8)}; }
    static F load_u8(const uint8_t* p) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low_bytes(p))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low_bytes(p + 8)))};
    }
    static F load_i8(const int8_t* p) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low_bytes(p))), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low_bytes(p + 8)))};
    }
    static void store(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
    static void store_half(uint16_t* p, F x) {
        constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, kNearest));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, kNearest));
    }

    static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
    static F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }
    static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
    static F abs(F x) { const __m256 sign = _mm256_set1_ps(-0.0f); return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)}; }
    static F select_less(F a, F b, F x, F y) {
        return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)), _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
    }
    static F keep_lanes(F x, int first, int last, F other) {
        const __m256i lane_a = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i lane_b = _mm256_add_epi32(lane_a, _mm256_set1_epi32(8));
        const __m256i before = _mm256_set1_epi32(first - 1), end = _mm256_set1_epi32(last);
        const auto inside = [&](__m256i lane) {
            return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane, before), _mm256_cmpgt_epi32(end, lane)));
        };
        return {_mm256_blendv_ps(other.a, x.a, inside(lane_a)), _mm256_blendv_ps(other.b, x.b, inside(lane_b))};
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
    static float tree_sum(F x) { return tree_sum8(_mm256_add_ps(x.a, x.b)); }
    static float tree_max(F x) { return tree_max8(_mm256_max_ps(x.a, x.b)); }
    static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

    static I zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static I splat_int(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
    static I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
    static I add_int(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static I low_seven(I x) { const __m256i m = _mm256_set1_epi32(127); return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)}; }
    template <int N> static I shift_right(I x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
    template <int N> static I shift_left(I x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
    static F power_of_two(I n) {
        const __m256i bias = _mm256_set1_epi32(127);
        return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23)),
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23))};
    }
    static void store_i8(int8_t* p, I x) {
        alignas(32) int32_t lane[16];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane), x.a);
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane + 8), x.b);
        for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(lane[i]);
    }
    static int32_t sum(I x) {
        alignas(32) int32_t lane[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lane), _mm256_add_epi32(x.a, x.b));
        int32_t s = 0;
        for (int32_t v : lane) s += v;
        return s;
    }

    static U load_bytes(const void* p) {
        const auto* line = static_cast<const __m256i*>(p);
        return {_mm256_loadu_si256(line), _mm256_loadu_si256(line + 1)};
    }
    static U splat_byte(uint8_t x) { const __m256i v = _mm256_set1_epi8(static_cast<char>(x)); return {v, v}; }
    static U bit_and(U x, U y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
    static U bit_or(U x, U y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
    template <int N> static U shift_bytes_left(U x) { return {_mm256_slli_epi16(x.a, N), _mm256_slli_epi16(x.b, N)}; }
    template <int N> static U shift_bytes_right(U x) { return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)}; }

    // maddubs saturates at 16 bits: safe because codes are at most 63 (63 * 127 * 2 < 2^15) ...
    static I dot(I acc, U codes, const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        const __m256i xs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
        return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.a, xs), ones)),
                _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(codes.b, xs), ones))};
    }
    // ... and here because |value| <= 128 takes the unsigned side (128 * 127 * 2 < 2^15) and x is never -128.
    static I dot_wide(I acc, U codes, const int8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        const __m256i xs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(static_cast<char>(0x80));
        const auto part = [&](__m256i sum, __m256i code) {
            const __m256i value = _mm256_xor_si256(code, flip);
            return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(value), _mm256_sign_epi8(xs, value)), ones));
        };
        return {part(acc.a, codes.a), part(acc.b, codes.b)};
    }
    // x is 0..127 here and |value| <= 128: no saturation.
    static I dot_signed(I acc, const int8_t* x, U values) {
        int32_t four;
        std::memcpy(&four, x, 4);
        const __m256i xs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
        return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(xs, values.a), ones)),
                _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(xs, values.b), ones))};
    }
};

}  // namespace
}  // namespace draftsmith
