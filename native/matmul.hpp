// Matrix products, once for all instruction sets. A result is a fixed sequence of operations over the columns, whatever
// the number of tokens m: that is what makes checking eight tokens give the bits of checking one.
#pragma once

#include "formats.hpp"
#include "half.hpp"

namespace draftsmith {
namespace {

template <BlockType T> struct Format { static constexpr FormatInfo info = format_info(T); };

// Bytes ahead, for so many tokens: what these leave of the time that memory takes to answer.
constexpr size_t prefetch_distance(int tokens) { return tokens <= 2 ? 3072 : 6144; }

constexpr size_t kManyBytes = 512 << 10;  // of quantised rows
constexpr size_t kKeptBytes = 384 << 10;  // of weights, while many rows pass by

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// The eight vectors of codes of a group.
template <class S, int BITS> inline void load_codes(const uint8_t* p, typename S::U (&codes)[8]) {
    if constexpr (BITS == 8) {
        for (int i = 0; i < 8; ++i) codes[i] = S::load_bytes(p + 64 * i);
    } else {
        const auto nibble = S::splat_byte(15);
        for (int i = 0; i < 4; ++i) {
            const auto line = S::load_bytes(p + 64 * i);
            codes[2 * i] = S::bit_and(line, nibble);
            codes[2 * i + 1] = S::bit_and(S::template shift_bytes_right<4>(line), nibble);
        }
        if constexpr (BITS == 5) {
            const auto bit = S::splat_byte(16);
            const auto plane = S::load_bytes(p + 256);
            const auto put = [&](int i, typename S::U shifted) { codes[i] = S::bit_or(codes[i], S::bit_and(shifted, bit)); };
            put(0, S::template shift_bytes_left<4>(plane));
            put(1, S::template shift_bytes_left<3>(plane));
            put(2, S::template shift_bytes_left<2>(plane));
            put(3, S::template shift_bytes_left<1>(plane));
            put(4, plane);
            put(5, S::template shift_bytes_right<1>(plane));
            put(6, S::template shift_bytes_right<2>(plane));
            put(7, S::template shift_bytes_right<3>(plane));
        }
        if constexpr (BITS == 6) {
            const auto bits = S::splat_byte(48);
            for (int half = 0; half < 2; ++half) {
                const auto plane = S::load_bytes(p + 256 + 64 * half);
                const auto put = [&](int i, typename S::U shifted) { codes[4 * half + i] = S::bit_or(codes[4 * half + i], S::bit_and(shifted, bits)); };
                put(0, S::template shift_bytes_left<4>(plane));
                put(1, S::template shift_bytes_left<2>(plane));
                put(2, plane);
                put(3, S::template shift_bytes_right<2>(plane));
            }
        }
    }
}

// The scales (one for each part of a group) and the minimum of group g, from the headers of a stretch.
template <class S, class Fmt> inline void load_scales(const uint8_t* headers, size_t g, typename S::F (&scale)[2], typename S::F& minimum) {
    constexpr FormatInfo f = Fmt::info;
    const uint8_t* header = headers + (f.super_block ? 0 : g) * header_bytes(f);
    const auto* halves = reinterpret_cast<const uint16_t*>(header);
    const auto d = S::load_half(halves);
    if constexpr (!f.super_block) {
        scale[0] = d;
        if constexpr (f.minimum) minimum = S::load_half(halves + kTileRows);
    } else {
        const uint8_t* bytes = header + scale_head_bytes(f) + g * kTileRows * (f.scales_per_group + (f.minimum ? 1 : 0));
        if constexpr (f.scales_per_group == 2) {  // signed scales
            scale[0] = S::mul(d, S::load_i8(reinterpret_cast<const int8_t*>(bytes)));
            scale[1] = S::mul(d, S::load_i8(reinterpret_cast<const int8_t*>(bytes) + kTileRows));
        } else {
            scale[0] = S::mul(d, S::load_u8(bytes));
        }
        if constexpr (f.minimum) {  // subtracted in these formats
            minimum = S::sub(S::splat(0.0f), S::mul(S::load_half(halves + kTileRows), S::load_u8(bytes + kTileRows)));
        }
    }
}

// One tile times MT rows of activations, the first of which is a multiple of S::kMaxTokens.
template <class S, class Fmt, int MT>
inline void tile_quant(const uint8_t* tile, size_t cols, const QuantRows& x, size_t row, typename S::F (&acc)[MT]) {
    constexpr FormatInfo f = Fmt::info;
    constexpr int kParts = f.scales_per_group;
    constexpr int kOffset = f.bits == 8 ? S::kWideOffset : f.offset;
    constexpr size_t kAhead = prefetch_distance(MT);
    const QuantGroup* x_group = x.at(row, 0);  // the MT rows lie in one block of rows
    for (int t = 0; t < MT; ++t) acc[t] = S::splat(0.0f);
    for (size_t left = cols / kGroup; left > 0;) {
        const size_t groups = left < kSuperGroup ? left : kSuperGroup, codes_at = codes_offset(f, groups);
        // The processor's own prefetching stops at page boundaries; at many tokens a group takes long enough to see that.
        for (size_t line = 0; line < codes_at; line += 64) __builtin_prefetch(tile + line + kAhead);
        for (size_t g = 0; g < groups; ++g, x_group += kQuantBlock) {
            const uint8_t* at = tile + codes_at + g * code_bytes(f);
            for (size_t line = 0; line < code_bytes(f); line += 64) __builtin_prefetch(at + line + kAhead);
            typename S::U codes[8];
            typename S::F scale[2], minimum;
            load_codes<S, f.bits>(at, codes);
            load_scales<S, Fmt>(tile, g, scale, minimum);
#pragma GCC unroll 8
            for (int t = 0; t < MT; ++t) {
                const QuantGroup& xs = x_group[t];
                const auto x_scale = S::splat(xs.scale);
#pragma GCC unroll 2
                for (int part = 0; part < kParts; ++part) {
                    auto dot = S::zero();
                    if constexpr (kOffset != 0) {
                        dot = S::template shift_left<log2_of(kOffset)>(S::splat_int(kParts == 2 ? xs.minus_halves[part] : xs.minus_sum));
                    }
#pragma GCC unroll 8
                    for (int i = part * 8 / kParts; i < (part + 1) * 8 / kParts; ++i) {
                        if constexpr (f.bits == 8) dot = S::dot_wide(dot, codes[i], xs.codes + 4 * i);
                        else dot = S::dot(dot, codes[i], xs.codes + 4 * i);
                    }
                    acc[t] = S::fma(S::to_float(dot), S::mul(scale[part], x_scale), acc[t]);
                }
                if constexpr (f.minimum) acc[t] = S::fma(minimum, S::splat(xs.sum), acc[t]);
            }
        }
        tile += codes_at + groups * code_bytes(f);
        left -= groups;
    }
}

// Write 16 outputs, or fewer in the last tile of a matrix.
template <class S> inline void put_outputs(typename S::F value, float* out, size_t count, bool add) {
    if (count >= kTileRows) {
        S::store(out, add ? S::add(S::load(out), value) : value);
        return;
    }
    float lanes[kTileRows];
    S::store(lanes, value);
    for (size_t i = 0; i < count; ++i) out[i] = add ? out[i] + lanes[i] : lanes[i];
}

struct Output {
    float* data;
    size_t stride;
    size_t rows_of_weights;
    bool add;
};

template <class S, class Fmt, int MT>
inline void tile_quant_out(const uint8_t* tile, size_t tile_index, size_t cols, const QuantRows& x, size_t row, size_t out_row, const Output& out) {
    typename S::F acc[MT];
    tile_quant<S, Fmt, MT>(tile, cols, x, row, acc);
    const size_t n = tile_index * kTileRows;
    for (int t = 0; t < MT; ++t) {
        put_outputs<S>(acc[t], out.data + (out_row + static_cast<size_t>(t)) * out.stride + n, out.rows_of_weights - n, out.add);
    }
}

// One tile times some rows, at most S::kMaxTokens.
template <class S, class Fmt>
void tile_times_rows(const Weights& w, size_t tile, const QuantRows& x, size_t first_row, size_t row, size_t count, const Output& out) {
    const uint8_t* data = w.data + tile * tile_bytes(Fmt::info, w.cols);
    const auto run = [&]<int MT>() { tile_quant_out<S, Fmt, MT>(data, tile, w.cols, x, first_row + row, row, out); };
    switch (count) {
        case 1: run.template operator()<1>(); break;
        case 2: run.template operator()<2>(); break;
        case 3: run.template operator()<3>(); break;
        case 4: run.template operator()<4>(); break;
        default:
            if constexpr (S::kMaxTokens > 4) {
                switch (count) {
                    case 5: run.template operator()<5>(); break;
                    case 6: run.template operator()<6>(); break;
                    case 7: run.template operator()<7>(); break;
                    default: run.template operator()<8>(); break;
                }
            }
    }
}

// A tile meets all rows while it is in the nearest cache. Where the rows are more than the second cache holds, some tiles stay
// there instead, and the rows pass by.
template <class S, class Fmt>
void matmul_quant_format(const Weights& w, size_t first_tile, size_t last_tile, const QuantRows& x, size_t first_row, size_t m, const Output& out) {
    const size_t size = tile_bytes(Fmt::info, w.cols), together = m * w.cols * 2 < kManyBytes || size > kKeptBytes ? 1 : kKeptBytes / size;
    for (size_t tile = first_tile; tile < last_tile; tile += together) {
        const size_t end = last_tile - tile < together ? last_tile : tile + together;
        for (size_t row = 0; row < m; row += S::kMaxTokens) {
            const size_t count = m - row < S::kMaxTokens ? m - row : S::kMaxTokens;
            for (size_t i = tile; i < end; ++i) tile_times_rows<S, Fmt>(w, i, x, first_row, row, count, out);
        }
    }
}

template <class S>
void matmul_quant(const Weights& w, size_t first_tile, size_t last_tile, const QuantRows& x, size_t first_row, size_t m, float* out,
                  size_t out_stride, bool add) {
    const Output target{out, out_stride, w.rows, add};
    const auto run = [&]<BlockType T>() { matmul_quant_format<S, Format<T>>(w, first_tile, last_tile, x, first_row, m, target); };
    switch (w.type) {
        case BlockType::Q4_0: run.template operator()<BlockType::Q4_0>(); break;
        case BlockType::Q4_1: run.template operator()<BlockType::Q4_1>(); break;
        case BlockType::Q5_0: run.template operator()<BlockType::Q5_0>(); break;
        case BlockType::Q5_1: run.template operator()<BlockType::Q5_1>(); break;
        case BlockType::Q8_0: run.template operator()<BlockType::Q8_0>(); break;
        case BlockType::Q4_K: run.template operator()<BlockType::Q4_K>(); break;
        case BlockType::Q5_K: run.template operator()<BlockType::Q5_K>(); break;
        case BlockType::Q6_K: run.template operator()<BlockType::Q6_K>(); break;
        default: break;
    }
}

template <class S, BlockType T> inline typename S::F load_column(const uint8_t* tile, size_t k) {
    if constexpr (T == BlockType::F32) return S::load(reinterpret_cast<const float*>(tile) + k * kTileRows);
    else if constexpr (T == BlockType::F16) return S::load_half(reinterpret_cast<const uint16_t*>(tile) + k * kTileRows);
    else return S::load_bfloat(reinterpret_cast<const uint16_t*>(tile) + k * kTileRows);
}

// NT tiles times MT rows: each output is one chain of fused multiply-adds over the columns, in order.
template <class S, BlockType T, int NT, int MT>
inline void tiles_float(const Weights& w, size_t tile, const float* x, size_t x_stride, size_t row, const Output& out) {
    const size_t size = w.tile_size();
    const uint8_t* data = w.data + tile * size;
    typename S::F acc[NT][MT];
    for (auto& per_tile : acc) for (auto& a : per_tile) a = S::splat(0.0f);
    for (size_t k = 0; k < w.cols; ++k) {
#pragma GCC unroll 4
        for (int n = 0; n < NT; ++n) {
            const auto column = load_column<S, T>(data + static_cast<size_t>(n) * size, k);
#pragma GCC unroll 8
            for (int t = 0; t < MT; ++t) acc[n][t] = S::fma(column, S::splat(x[(row + static_cast<size_t>(t)) * x_stride + k]), acc[n][t]);
        }
    }
    for (int n = 0; n < NT; ++n) {
        const size_t first = (tile + static_cast<size_t>(n)) * kTileRows;
        for (int t = 0; t < MT; ++t) {
            put_outputs<S>(acc[n][t], out.data + (row + static_cast<size_t>(t)) * out.stride + first, out.rows_of_weights - first, out.add);
        }
    }
}

template <class S, BlockType T>
void matmul_float_format(const Weights& w, size_t first_tile, size_t last_tile, const float* x, size_t x_stride, size_t m, const Output& out) {
    for (size_t tile = first_tile; tile < last_tile;) {
        const bool four = last_tile - tile >= 4;
        for (size_t row = 0; row < m;) {
            if (m - row >= 4) {
                if (four) { tiles_float<S, T, 4, 4>(w, tile, x, x_stride, row, out); } else { tiles_float<S, T, 1, 4>(w, tile, x, x_stride, row, out); }
                row += 4;
            } else {
                if (four) { tiles_float<S, T, 4, 1>(w, tile, x, x_stride, row, out); } else { tiles_float<S, T, 1, 1>(w, tile, x, x_stride, row, out); }
                row += 1;
            }
        }
        tile += four ? 4 : 1;
    }
}

template <class S>
void matmul_float(const Weights& w, size_t first_tile, size_t last_tile, const float* x, size_t x_stride, size_t m, float* out, size_t out_stride, bool add) {
    const Output target{out, out_stride, w.rows, add};
    if (w.type == BlockType::F32) matmul_float_format<S, BlockType::F32>(w, first_tile, last_tile, x, x_stride, m, target);
    if (w.type == BlockType::F16) matmul_float_format<S, BlockType::F16>(w, first_tile, last_tile, x, x_stride, m, target);
    if (w.type == BlockType::BF16) matmul_float_format<S, BlockType::BF16>(w, first_tile, last_tile, x, x_stride, m, target);
}

}  // namespace
}  // namespace draftsmith
