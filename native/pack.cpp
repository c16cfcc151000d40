#include "pack.hpp"

#include <algorithm>
#include <cstring>

#include "half.hpp"

namespace draftsmith {
namespace {

// One block of a file, taken apart. Arrays are long enough for 256 columns.
struct Block {
    uint8_t codes[256];
    uint16_t d = 0, m = 0;   // halves, as stored
    uint8_t scales[16] = {}; // bytes, as stored once unpacked: one for each 32 columns, or two (Q6_K)
    uint8_t minimums[8] = {};
};

uint16_t read_half(const uint8_t* p) { uint16_t h; std::memcpy(&h, p, 2); return h; }

void read_nibbles(const uint8_t* p, Block& b) {
    for (int j = 0; j < 16; ++j) {
        b.codes[j] = p[j] & 15;
        b.codes[j + 16] = p[j] >> 4;
    }
}

void read_fifth_bits(const uint8_t* p, Block& b) {
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    for (int j = 0; j < 32; ++j) b.codes[j] |= static_cast<uint8_t>(((bits >> j) & 1u) << 4);
}

// Eight 6-bit scales and minimums in 12 bytes.
void read_six_bit_scales(const uint8_t* p, Block& b) {
    for (int j = 0; j < 4; ++j) {
        b.scales[j] = p[j] & 63;
        b.minimums[j] = p[j + 4] & 63;
        b.scales[j + 4] = static_cast<uint8_t>((p[j + 8] & 15) | ((p[j] >> 6) << 4));
        b.minimums[j + 4] = static_cast<uint8_t>((p[j + 8] >> 4) | ((p[j + 4] >> 6) << 4));
    }
}

void read_super_nibbles(const uint8_t* p, Block& b) {
    for (int group = 0; group < 8; ++group) {
        const uint8_t* line = p + group / 2 * 32;
        for (int j = 0; j < 32; ++j) b.codes[group * 32 + j] = group % 2 ? line[j] >> 4 : line[j] & 15;
    }
}

void read_q6_k(const uint8_t* p, Block& b) {
    const uint8_t* low = p;
    const uint8_t* high = p + 128;
    for (int half = 0; half < 2; ++half, low += 64, high += 32) {
        for (int j = 0; j < 128; ++j) {
            const uint8_t nibble = j < 64 ? low[j] & 15 : low[j - 64] >> 4;
            const uint8_t two = (high[j % 32] >> (2 * (j / 32))) & 3;
            b.codes[half * 128 + j] = static_cast<uint8_t>(nibble | (two << 4));
        }
    }
    std::memcpy(b.scales, p + 192, 16);
    b.d = read_half(p + 208);
}

void read_block(BlockType type, const uint8_t* p, Block& b) {
    b.d = read_half(p);
    switch (type) {
        case BlockType::Q4_0: read_nibbles(p + 2, b); break;
        case BlockType::Q4_1: b.m = read_half(p + 2); read_nibbles(p + 4, b); break;
        case BlockType::Q5_0: read_nibbles(p + 6, b); read_fifth_bits(p + 2, b); break;
        case BlockType::Q5_1: b.m = read_half(p + 2); read_nibbles(p + 8, b); read_fifth_bits(p + 4, b); break;
        case BlockType::Q8_0: for (int j = 0; j < 32; ++j) b.codes[j] = p[2 + j] ^ 0x80; break;
        case BlockType::Q4_K: b.m = read_half(p + 2); read_six_bit_scales(p + 4, b); read_super_nibbles(p + 16, b); break;
        case BlockType::Q5_K:
            b.m = read_half(p + 2);
            read_six_bit_scales(p + 4, b);
            read_super_nibbles(p + 48, b);
            for (int k = 0; k < 256; ++k) b.codes[k] |= static_cast<uint8_t>(((p[16 + k % 32] >> (k / 32)) & 1) << 4);
            break;
        case BlockType::Q6_K: read_q6_k(p, b); break;
        default: break;
    }
}

void write_group_codes(const FormatInfo& f, const uint8_t* codes, size_t lane, uint8_t* out) {
    for (size_t k = 0; k < kGroup; ++k) {
        const size_t vector = k / 4, byte = lane * 4 + k % 4;
        if (f.bits == 8) { out[vector * 64 + byte] = codes[k]; continue; }
        out[vector / 2 * 64 + byte] |= static_cast<uint8_t>((codes[k] & 15) << (4 * (vector % 2)));
        if (f.bits == 5) out[256 + byte] |= static_cast<uint8_t>((codes[k] >> 4) << vector);
        if (f.bits == 6) out[256 + vector / 4 * 64 + byte] |= static_cast<uint8_t>((codes[k] >> 4) << (2 * (vector % 4)));
    }
}

uint8_t read_group_code(const FormatInfo& f, const uint8_t* in, size_t lane, size_t k) {
    const size_t vector = k / 4, byte = lane * 4 + k % 4;
    if (f.bits == 8) return in[vector * 64 + byte];
    uint8_t code = (in[vector / 2 * 64 + byte] >> (4 * (vector % 2))) & 15;
    if (f.bits == 5) code |= static_cast<uint8_t>(((in[256 + byte] >> vector) & 1) << 4);
    if (f.bits == 6) code |= static_cast<uint8_t>(((in[256 + vector / 4 * 64 + byte] >> (2 * (vector % 4))) & 3) << 4);
    return code;
}

size_t bytes_per_group(const FormatInfo& f) { return kTileRows * static_cast<size_t>(f.scales_per_group + (f.minimum ? 1 : 0)); }

void write_header(const FormatInfo& f, const Block& b, size_t lane, uint8_t* header) {
    std::memcpy(header + lane * 2, &b.d, 2);
    if (f.minimum) std::memcpy(header + kTileRows * 2 + lane * 2, &b.m, 2);
    if (!f.super_block) return;
    for (size_t g = 0; g < kSuperGroup; ++g) {
        uint8_t* bytes = header + scale_head_bytes(f) + g * bytes_per_group(f);
        const size_t parts = static_cast<size_t>(f.scales_per_group);
        for (size_t part = 0; part < parts; ++part) bytes[part * kTileRows + lane] = b.scales[g * parts + part];
        if (f.minimum) bytes[kTileRows + lane] = b.minimums[g];
    }
}

// The headers and codes of group `index` of a tile.
template <class Byte> struct GroupAt { Byte *header, *codes; };

template <class Byte> GroupAt<Byte> group_at(const FormatInfo& f, size_t cols, Byte* tile, size_t index) {
    const size_t first = index / kSuperGroup * kSuperGroup, within = index - first;
    const size_t groups = std::min<size_t>(kSuperGroup, cols / kGroup - first);
    Byte* stretch = tile + index / kSuperGroup * stretch_bytes(f, kSuperGroup);
    return {stretch + (f.super_block ? 0 : within * header_bytes(f)), stretch + codes_offset(f, groups) + within * code_bytes(f)};
}

void pack_quantised(BlockType type, const FormatInfo& f, size_t cols, const uint8_t* row, size_t lane, uint8_t* tile) {
    const size_t blocks = cols / static_cast<size_t>(f.block_cols);
    const size_t groups_per_block = static_cast<size_t>(f.block_cols) / kGroup;
    for (size_t i = 0; i < blocks; ++i) {
        Block b;
        read_block(type, row + i * static_cast<size_t>(f.block_bytes), b);
        write_header(f, b, lane, group_at(f, cols, tile, i * groups_per_block).header);
        for (size_t g = 0; g < groups_per_block; ++g) {
            write_group_codes(f, b.codes + g * kGroup, lane, group_at(f, cols, tile, i * groups_per_block + g).codes);
        }
    }
}

void unpack_quantised(const FormatInfo& f, size_t cols, const uint8_t* tile, size_t lane, float* out) {
    for (size_t k = 0; k < cols; ++k) {
        const size_t g = k / kGroup;
        const auto [header, codes] = group_at(f, cols, tile, g);
        float scale = half_to_float(read_half(header + lane * 2));
        float minimum = f.minimum ? half_to_float(read_half(header + kTileRows * 2 + lane * 2)) : 0.0f;
        if (f.super_block) {
            const uint8_t* bytes = header + scale_head_bytes(f) + g % kSuperGroup * bytes_per_group(f);
            if (f.scales_per_group == 2) {
                scale *= static_cast<float>(static_cast<int8_t>(bytes[k % kGroup / 16 * kTileRows + lane]));
            } else {
                scale *= static_cast<float>(bytes[lane]);
                minimum *= -static_cast<float>(bytes[kTileRows + lane]);
            }
        }
        const int code = read_group_code(f, codes, lane, k % kGroup);
        out[k] = scale * static_cast<float>(code - f.offset);
        if (f.minimum) out[k] += minimum;  // adding a zero would lose the sign of a negative one
    }
}

}  // namespace

void pack_tile(BlockType type, size_t rows, size_t cols, size_t tile, const uint8_t* source, uint8_t* destination) {
    const FormatInfo f = format_info(type);
    const size_t row_bytes = cols / static_cast<size_t>(f.block_cols) * static_cast<size_t>(f.block_bytes);
    std::memset(destination, 0, tile_bytes(f, cols));
    for (size_t lane = 0; lane < kTileRows; ++lane) {
        const size_t row = tile * kTileRows + lane;
        if (row >= rows) return;
        const uint8_t* from = source + row * row_bytes;
        if (f.quantised) {
            pack_quantised(type, f, cols, from, lane, destination);
        } else {
            const size_t item = static_cast<size_t>(f.block_bytes);
            for (size_t k = 0; k < cols; ++k) std::memcpy(destination + (k * kTileRows + lane) * item, from + k * item, item);
        }
    }
}

void unpack_row(const Weights& w, size_t row, float* out) {
    const FormatInfo f = format_info(w.type);
    const uint8_t* tile = w.data + row / kTileRows * w.tile_size();
    const size_t lane = row % kTileRows;
    if (f.quantised) return unpack_quantised(f, w.cols, tile, lane, out);
    for (size_t k = 0; k < w.cols; ++k) {
        const size_t at = k * kTileRows + lane;
        if (w.type == BlockType::F32) std::memcpy(out + k, tile + at * 4, 4);
        else if (w.type == BlockType::F16) out[k] = half_to_float(read_half(tile + at * 2));
        else out[k] = bfloat_to_float(read_half(tile + at * 2));
    }
}

}  // namespace draftsmith
