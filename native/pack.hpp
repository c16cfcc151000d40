// From the blocks of a GGUF file to tiles (see formats.hpp), and back for one row.
#pragma once

#include "formats.hpp"

namespace draftsmith {

// Pack the 16 rows of one tile. `source` is row-major blocks as in a file: rows x (cols / block_cols) x block_bytes.
void pack_tile(BlockType type, size_t rows, size_t cols, size_t tile, const uint8_t* source, uint8_t* destination);

// Row `row` of a packed matrix as float32 [cols]; the same operations as the reference dequantisation.
void unpack_row(const Weights& weights, size_t row, float* out);

}  // namespace draftsmith
