// Matrix products, once for all instruction sets. A result is a fixed sequence of operations over the columns, whatever
// the number of tokens m: that is what makes checking eight tokens give the bits of checking one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "formats.hpp"
#include "half.hpp"
#include "kernels.hpp"

namespace draftsmith {
namespace {

template <BlockType T> struct Format { static constexpr FormatInfo info = format_info(T); };

// Bytes ahead, for so many tokens: what these leave of the time that memory takes to answer.
constexpr size_t kFarAhead = 6144;
constexpr size_t prefetch_distance(int tokens) { return tokens <= 2 ? 3072 : kFarAhead; }

// Fetch what `from` is some tokens ahead of. Into the second cache where the first has few slots for lines on their way: they
// would all be taken, and the activations, which come from the second cache, would have to wait with them.
template <int TOKENS> [[gnu::always_inline]] inline void fetch_ahead(const uint8_t* from, size_t bytes, bool second_cache) {
    if (second_cache) {
        for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line + kFarAhead, 0, 2);
    } else {
        for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line + prefetch_distance(TOKENS));
    }
}

constexpr size_t kManyBytes = 512 << 10;  // of quantised rows
constexpr size_t kKeptBytes = 384 << 10;  // of weights, while many rows pass by

constexpr int log2_of(int x) { return x <= 1 ? 0 : 1 + log2_of(x / 2); }

// Vector K (0..7) of the codes of a group.
template <class S, int BITS, int K> [[gnu::always_inline]] inline typename S::U load_codes(const uint8_t* p) {
    if constexpr (BITS == 8) {
        return S::load_bytes(p + 64 * K);
    } else {
        auto line = S::load_bytes(p + 64 * (K / 2));
        if constexpr (K % 2) line = S::template shift_bytes_right<4>(line);
        const auto nibbles = S::bit_and(line, S::splat_byte(15));
        if constexpr (BITS == 4) return nibbles;
        // The bits above: bit K of a line for all, or two bits of a line for each four.
        constexpr int kLow = BITS == 5 ? K : 2 * (K % 4);
        auto plane = S::load_bytes(p + 256 + (BITS == 6 ? 64 * (K / 4) : 0));
        if constexpr (kLow < 4) plane = S::template shift_bytes_left<4 - kLow>(plane);
        if constexpr (kLow > 4) plane = S::template shift_bytes_right<kLow - 4>(plane);
        return S::bit_or(nibbles, S::bit_and(plane, S::splat_byte(BITS == 5 ? 16 : 48)));
    }
}

// The scales (one for each part of a group) and the minimum of group g, from the headers of a stretch, for lanes from `lane` on.
template <class S, class Fmt> [[gnu::always_inline]] inline void load_scales(const uint8_t* headers, size_t g, int lane, typename S::F (&scale)[2], typename S::F& minimum) {
    constexpr FormatInfo f = Fmt::info;
    const uint8_t* header = headers + (f.super_block ? 0 : g) * header_bytes(f);
    const auto* halves = reinterpret_cast<const uint16_t*>(header) + lane;
    const auto d = S::load_half(halves);
    if constexpr (!f.super_block) {
        scale[0] = d;
        if constexpr (f.minimum) minimum = S::load_half(halves + kTileRows);
    } else {
        const uint8_t* bytes = header + scale_head_bytes(f) + g * kTileRows * (f.scales_per_group + (f.minimum ? 1 : 0)) + lane;
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

// How many products of two codes each, at most 2 * 127 * (2^BITS - 1), can be added up in 16 bits.
constexpr int pairs_that_fit(int bits) { return 32767 / (2 * 127 * ((1 << bits) - 1)); }

// What the registers of a block of NT tiles hold: register n has some lanes of tile n / kSlices. L: its operations.
template <class S, int NT> struct Registers {
    using L = typename S::Slice;
    static constexpr int kSlices = 16 / L::kLanes, kCount = NT * kSlices;
    static constexpr int lane(int n) { return n % kSlices * L::kLanes; }
    static size_t tile(int n, size_t tile_size) { return static_cast<size_t>(n / kSlices) * tile_size; }
};

// dot[n][t] += codes of register n . activations t, for the vectors FIRST .. FIRST + COUNT - 1 of a group. Exact, so that the
// order does not matter: a vector of activations is read once for all tiles, one of codes unpacked once for all tokens.
template <class R, class Fmt, int FIRST, int COUNT, int N, int MT, class L = typename R::L>
[[gnu::always_inline]] inline void add_dots(const uint8_t* codes, size_t tile_size, const QuantGroup* x, typename L::I (&dot)[N][MT]) {
    constexpr int kBits = Fmt::info.bits, kTogether = pairs_that_fit(kBits);
    constexpr bool kInPairs = kBits < 8 && requires { L::pairs; };
    constexpr int kStep = kInPairs && kTogether == 2 ? 2 : 1;  // few products at a time are added up at once, not in turns
    typename L::I sum[N][MT];
    const auto add_vectors = [&]<int K>() {
        typename L::U code[kStep][N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const uint8_t* at = codes + R::tile(n, tile_size) + 4 * R::lane(n);
            code[0][n] = load_codes<L, kBits, K>(at);
            if constexpr (kStep == 2) code[1][n] = load_codes<L, kBits, K + 1>(at);
        }
#pragma GCC unroll 8
        for (int t = 0; t < MT; ++t) {
            const int8_t* x_codes = x[t].codes + 4 * K;
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                if constexpr (kStep == 2) {
                    dot[n][t] = L::add_widened(dot[n][t], L::add_pairs(L::pairs(code[0][n], x_codes), L::pairs(code[1][n], x_codes + 4)));
                } else if constexpr (kInPairs) {
                    constexpr int kTurn = (K - FIRST) % kTogether;
                    const auto product = L::pairs(code[0][n], x_codes);
                    sum[n][t] = kTurn == 0 ? product : L::add_pairs(sum[n][t], product);
                    if (kTurn == kTogether - 1 || K == FIRST + COUNT - 1) dot[n][t] = L::add_widened(dot[n][t], sum[n][t]);
                } else if constexpr (kBits == 8) {
                    dot[n][t] = L::dot_wide(dot[n][t], code[0][n], x_codes);
                } else {
                    dot[n][t] = L::dot(dot[n][t], code[0][n], x_codes);
                }
            }
        }
    };
    [&]<int... I>(std::integer_sequence<int, I...>) { (add_vectors.template operator()<FIRST + kStep * I>(), ...); }(std::make_integer_sequence<int, COUNT / kStep>{});
}

// One group of some tiles times MT rows of activations.
template <class R, class Fmt, int N, int MT, class L = typename R::L>
[[gnu::always_inline]] inline void add_group(const uint8_t* headers, size_t g, const uint8_t* codes, size_t tile_size, const QuantGroup* x, typename L::F (&acc)[N][MT]) {
    constexpr FormatInfo f = Fmt::info;
    constexpr int kParts = f.scales_per_group, kVectors = 8 / kParts;
    constexpr int kOffset = f.bits == 8 ? L::kWideOffset : f.offset;
    typename L::F scale[N][2], minimum[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) load_scales<L, Fmt>(headers + R::tile(n, tile_size), g, R::lane(n), scale[n], minimum[n]);
    const auto add_part = [&]<int PART>() {
        typename L::I dot[N][MT];
#pragma GCC unroll 8
        for (int t = 0; t < MT; ++t) {
            auto start = L::zero();
            if constexpr (kOffset != 0) start = L::template shift_left<log2_of(kOffset)>(L::splat_int(kParts == 2 ? x[t].minus_halves[PART] : x[t].minus_sum));
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) dot[n][t] = start;
        }
        add_dots<R, Fmt, PART * kVectors, kVectors, N, MT>(codes, tile_size, x, dot);
#pragma GCC unroll 8
        for (int t = 0; t < MT; ++t) {
            const auto x_scale = L::splat(x[t].scale);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[n][t] = L::fma(L::to_float(dot[n][t]), L::mul(scale[n][PART], x_scale), acc[n][t]);
        }
    };
    add_part.template operator()<0>();
    if constexpr (kParts == 2) add_part.template operator()<1>();
    if constexpr (f.minimum) {
#pragma GCC unroll 8
        for (int t = 0; t < MT; ++t) {
            const auto x_sum = L::splat(x[t].sum);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[n][t] = L::fma(minimum[n], x_sum, acc[n][t]);
        }
    }
}

// NT tiles times MT rows of activations, the first of which is a multiple of S::kMaxTokens. `fetch`: the tile comes from memory.
template <class S, class Fmt, int NT, int MT, class R = Registers<S, NT>>
[[gnu::always_inline]] inline void tiles_quant(const uint8_t* tile, size_t tile_size, size_t cols, const QuantRows& x, size_t row, bool fetch, typename R::L::F (&acc)[R::kCount][MT]) {
    constexpr FormatInfo f = Fmt::info;
    const QuantGroup* x_group = x.at(row, 0);  // the MT rows lie in one block of rows
    const bool second_cache = kFetchIntoSecondCache && (MT > 1 || tile_size < kFarAhead);  // one token wants long tiles at once
    for (auto& per_register : acc) for (auto& a : per_register) a = R::L::splat(0.0f);
    for (size_t left = cols / kGroup; left > 0;) {
        const size_t groups = left < kSuperGroup ? left : kSuperGroup, codes_at = codes_offset(f, groups);
        // The processor's own prefetching stops at page boundaries; at many tokens a group takes long enough to see that.
        if (NT == 1 && fetch) fetch_ahead<MT>(tile, codes_at, second_cache);
        for (size_t g = 0; g < groups; ++g, x_group += kQuantBlock) {
            const uint8_t* at = tile + codes_at + g * code_bytes(f);
            if (NT == 1 && fetch) fetch_ahead<MT>(at, code_bytes(f), second_cache);
            add_group<R, Fmt, R::kCount, MT>(tile, g, at, tile_size, x_group, acc);
        }
        tile += codes_at + groups * code_bytes(f);
        left -= groups;
    }
}

// Write a register of outputs, or fewer in the last tile of a matrix, which has `count` rows left.
template <class L> inline void put_outputs(typename L::F value, float* out, size_t count, bool add) {
    if (count >= L::kLanes) {
        L::store(out, add ? L::add(L::load(out), value) : value);
        return;
    }
    float lanes[L::kLanes];
    L::store(lanes, value);
    for (size_t i = 0; i < count; ++i) out[i] = add ? out[i] + lanes[i] : lanes[i];
}

struct Output {
    float* data;
    size_t stride;
    size_t rows_of_weights;
    bool add;
};

// NT tiles times some rows, at most S::kMaxTokens.
template <class S, class Fmt, int NT>
void tiles_times_rows(const Weights& w, size_t tile, const QuantRows& x, size_t first_row, size_t row, size_t count, const Output& out) {
    using R = Registers<S, NT>;
    const size_t size = tile_bytes(Fmt::info, w.cols);
    const auto run = [&]<int MT>() {
        typename R::L::F acc[R::kCount][MT];
        tiles_quant<S, Fmt, NT, MT>(w.data + tile * size, size, w.cols, x, first_row + row, row == 0, acc);
        for (int n = 0; n < R::kCount; ++n) {
            const size_t first = tile * kTileRows + static_cast<size_t>(n) * R::L::kLanes, left = out.rows_of_weights - std::min(first, out.rows_of_weights);
            for (int t = 0; t < MT; ++t) put_outputs<typename R::L>(acc[n][t], out.data + (row + static_cast<size_t>(t)) * out.stride + first, left, out.add);
        }
    };
    [&]<int... M>(std::integer_sequence<int, M...>) { ((count == M + 1 ? run.template operator()<M + 1>() : void()), ...); }(std::make_integer_sequence<int, S::kMaxTokens>{});
}

// A tile meets all rows while it is in the nearest cache. Where the rows are more than the second cache holds, some tiles stay
// there instead, and the rows pass by. All rows but the first, which wait for memory, meet two tiles at a time where there are
// registers for that: reading the activations is then half the work.
template <class S, class Fmt>
void matmul_quant_format(const Weights& w, size_t first_tile, size_t last_tile, const QuantRows& x, size_t first_row, size_t m, const Output& out) {
    const size_t size = tile_bytes(Fmt::info, w.cols), together = m * w.cols * 2 < kManyBytes || size > kKeptBytes ? 2 : kKeptBytes / size;
    for (size_t tile = first_tile; tile < last_tile; tile += together) {
        const size_t end = last_tile - tile < together ? last_tile : tile + together;
        for (size_t row = 0; row < m; row += S::kMaxTokens) {
            const size_t count = m - row < S::kMaxTokens ? m - row : S::kMaxTokens;
            size_t i = tile;
            if constexpr (S::kTilesTogether == 2) {
                if (row > 0) for (; i + 2 <= end; i += 2) tiles_times_rows<S, Fmt, 2>(w, i, x, first_row, row, count, out);
            }
            for (; i < end; ++i) tiles_times_rows<S, Fmt, 1>(w, i, x, first_row, row, count, out);
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
