// IEEE half precision and bfloat16 to and from float32, exactly as the processor's own instructions convert.
#pragma once

#include <cstdint>
#include <cstring>

namespace draftsmith {
namespace {

inline float bits_to_float(uint32_t bits) { float x; std::memcpy(&x, &bits, 4); return x; }
inline uint32_t float_to_bits(float x) { uint32_t bits; std::memcpy(&bits, &x, 4); return bits; }

inline float bfloat_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

inline float half_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t exponent = (h >> 10) & 31u;
    const uint32_t mantissa = h & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormals: exact
    return bits_to_float(sign | float_to_bits(magnitude));
}

inline uint16_t float_to_half(float x) {  // round to nearest even; overflow to infinity
    const uint32_t bits = float_to_bits(x);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 1023u));
    if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and more
    if (magnitude < 0x38800000u) {                                              // below 2^-14: a multiple of 2^-24
        const float scaled = bits_to_float(magnitude) * 0x1p24f;                // exact, at most 1024
        return static_cast<uint16_t>(sign | static_cast<uint16_t>(__builtin_nearbyintf(scaled)));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);  // may carry into the exponent, rightly
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace
}  // namespace draftsmith
