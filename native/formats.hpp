// How weights lie in memory once packed.
//
// A matrix of `rows` x `cols` becomes ceil(rows / 16) tiles of 16 rows, one after the other; missing rows are zeros.
// A tile of a quantised format is a chain of stretches of 256 columns (the last one may be shorter), each its headers
// (scales), padded to 64 bytes, and then its codes: one stream of memory from the first byte to the last.
//
//   codes, a group of 32 columns: vector i = 0..7 holds columns 4i .. 4i+3 of the 16 rows, byte 4 row + j.
//     4 bits: 4 x 64 bytes; vector i is the low (i even) or high (i odd) nibble of line i / 2
//     5 bits: the same, then 64 bytes whose bit i is bit 4 of vector i
//     6 bits: the same as 4, then 2 x 64 bytes; bits 2(i % 4) of line i / 4 are bits 4 and 5 of vector i
//     8 bits: 8 x 64 bytes, value + 128
//   headers: f16 scale d (and f16 minimum m) of 16 rows for each 32 columns (Q4_0 Q4_1 Q5_0 Q5_1 Q8_0), or, for each 256
//     columns, d (and m) of 16 rows and then for every 32 columns the 16 rows' scale (and minimum) bytes (Q4_K Q5_K
//     Q6_K; Q6_K has two scale bytes, one for each 16 columns).
//
// Block values are those of the file, to the bit: value = d * scale * (code - offset) + m.
// A tile of a float format is cols x 16 values, column by column.
// The block formats are those of GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace draftsmith {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;       // columns that share one activation scale
constexpr int kSuperGroup = 8;   // groups in a super-block of 256 columns

// The numbers are GGUF's (ggml_type).
enum class BlockType : int { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30 };

struct FormatInfo {
    bool quantised;
    int block_cols;      // columns of a block in the file
    int block_bytes;     // its size in the file
    int bits;            // of a code
    int offset;          // subtracted from a code
    bool minimum;        // has a minimum for every group
    bool super_block;    // scales are bytes, times a scale of 256 columns
    int scales_per_group;
};

constexpr FormatInfo format_info(BlockType type) {
    switch (type) {
        case BlockType::F32: return {false, 1, 4, 32, 0, false, false, 0};
        case BlockType::F16: return {false, 1, 2, 16, 0, false, false, 0};
        case BlockType::BF16: return {false, 1, 2, 16, 0, false, false, 0};
        case BlockType::Q4_0: return {true, 32, 18, 4, 8, false, false, 1};
        case BlockType::Q4_1: return {true, 32, 20, 4, 0, true, false, 1};
        case BlockType::Q5_0: return {true, 32, 22, 5, 16, false, false, 1};
        case BlockType::Q5_1: return {true, 32, 24, 5, 0, true, false, 1};
        case BlockType::Q8_0: return {true, 32, 34, 8, 128, false, false, 1};
        case BlockType::Q4_K: return {true, 256, 144, 4, 0, true, true, 1};
        case BlockType::Q5_K: return {true, 256, 176, 5, 0, true, true, 1};
        case BlockType::Q6_K: return {true, 256, 210, 6, 32, false, true, 2};
    }
    return {false, 0, 0, 0, 0, false, false, 0};
}

constexpr size_t code_bytes(const FormatInfo& f) { return static_cast<size_t>(f.bits) * kGroup * kTileRows / 8; }  // per group
constexpr size_t align_line(size_t n) { return (n + 63) / 64 * 64; }

// Bytes of the 16 rows' d (and m) at the head of a block of headers.
constexpr size_t scale_head_bytes(const FormatInfo& f) { return kTileRows * 2 * (f.minimum ? 2 : 1); }
// Bytes of a header: of one group, or of one super-block.
constexpr size_t header_bytes(const FormatInfo& f) {
    if (!f.super_block) return scale_head_bytes(f);
    return scale_head_bytes(f) + static_cast<size_t>(kSuperGroup) * kTileRows * static_cast<size_t>(f.scales_per_group + (f.minimum ? 1 : 0));
}
// Where things lie in a stretch of some groups (at most kSuperGroup) of a tile.
constexpr size_t codes_offset(const FormatInfo& f, size_t groups) { return align_line((f.super_block ? 1 : groups) * header_bytes(f)); }
constexpr size_t stretch_bytes(const FormatInfo& f, size_t groups) { return codes_offset(f, groups) + groups * code_bytes(f); }
constexpr size_t tile_bytes(const FormatInfo& f, size_t cols) {
    if (!f.quantised) return cols * kTileRows * static_cast<size_t>(f.block_bytes);
    const size_t groups = cols / kGroup, rest = groups % kSuperGroup;
    return groups / kSuperGroup * stretch_bytes(f, kSuperGroup) + (rest ? stretch_bytes(f, rest) : 0);
}

// A packed matrix: a view, the bytes belong to somebody else.
struct Weights {
    BlockType type = BlockType::F32;
    size_t rows = 0, cols = 0;
    const uint8_t* data = nullptr;

    explicit operator bool() const { return data != nullptr; }
    size_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
    size_t tile_size() const { return tile_bytes(format_info(type), cols); }
};

// 32 columns of one row of activations, quantised: value = scale * code, code in -127..127. One cache line.
struct alignas(64) QuantGroup {
    int8_t codes[kGroup];
    float scale;
    float sum;               // scale * (sum of the codes)
    int32_t minus_sum;       // minus the sum of the codes
    int32_t minus_halves[2]; // the same for each half of the group
};

constexpr size_t kQuantBlock = 8;  // rows whose groups lie side by side: a product reads them at fixed distances

struct QuantRows {
    QuantGroup* groups;  // [ceil(rows / 8)][cols / 32][8 rows]
    size_t cols;

    QuantGroup* at(size_t row, size_t group) const { return groups + ((row / kQuantBlock) * (cols / kGroup) + group) * kQuantBlock + row % kQuantBlock; }
};

constexpr size_t quant_groups(size_t rows, size_t cols) { return (rows + kQuantBlock - 1) / kQuantBlock * kQuantBlock * (cols / kGroup); }

}  // namespace draftsmith
