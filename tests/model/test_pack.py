"""Packing loses nothing: what comes back from a packed matrix is what the file's blocks stand for, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftsmith.model import _native
from draftsmith.quant import BlockType, dequantize
from tests.support.blocks import QUANTISED, packed, random_blocks, set_halves

ALL = pytest.mark.parametrize("block_type", list(BlockType), ids=lambda block_type: block_type.name)
QUANTISED_ONLY = pytest.mark.parametrize("block_type", QUANTISED, ids=lambda block_type: block_type.name)

# Zeros, subnormals, the smallest and largest numbers, both signs: all that an f16 scale can be without being infinite.
EXTREME = np.array([0, -0.0, 2**-24, -(2**-24), 1023 * 2**-24, 2**-14, -1, 1, 1 / 3, 65504, -65504], np.float16)


def unpacked(block_type: BlockType, rows: int, cols: int, blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return _native.unpack_rows(
        block_type.ggml_id, rows, cols, packed(block_type, rows, cols, blocks), list(range(rows))
    )


@ALL
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("cols", [256, 1280])
def test_unpacking_gives_the_values_of_the_blocks(block_type: BlockType, rows: int, cols: int) -> None:
    blocks = random_blocks(block_type, rows, cols)
    values = dequantize(block_type, blocks, (rows, cols))
    assert unpacked(block_type, rows, cols, blocks).tobytes() == values.tobytes()


@QUANTISED_ONLY
def test_extreme_scales_come_back_too(block_type: BlockType) -> None:
    rows, cols = 35, 512
    blocks = set_halves(block_type, random_blocks(block_type, rows, cols), EXTREME)
    values = dequantize(block_type, blocks, (rows, cols))
    assert np.isfinite(values).all()
    assert unpacked(block_type, rows, cols, blocks).tobytes() == values.tobytes()


@pytest.mark.parametrize("block_type", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("cols", [1, 7, 100])
def test_floats_of_any_width_come_back(block_type: BlockType, cols: int) -> None:
    rng = np.random.default_rng(cols)
    blocks = rng.integers(0, 256, 19 * cols * block_type.block_bytes, dtype=np.uint8)
    values = dequantize(block_type, blocks, (19, cols))
    back = unpacked(block_type, 19, cols, blocks)
    numbers = ~np.isnan(values)
    assert np.array_equal(np.isnan(back), ~numbers)
    assert back[numbers].tobytes() == values[numbers].tobytes()


def test_every_half_and_bfloat_is_widened_as_numpy_does() -> None:
    blocks = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    for block_type in (BlockType.F16, BlockType.BF16):
        values = dequantize(block_type, blocks, (256, 256))
        back = unpacked(block_type, 256, 256, blocks)
        numbers = ~np.isnan(values)
        assert back[numbers].tobytes() == values[numbers].tobytes()
        assert np.isnan(back[~numbers]).all()


@ALL
def test_threads_pack_alike(block_type: BlockType) -> None:
    blocks = random_blocks(block_type, 333, 256)
    alone, together = (packed(block_type, 333, 256, blocks, threads) for threads in (1, 2))
    assert alone.tobytes() == together.tobytes()


@ALL
def test_rows_come_in_the_order_asked_for(block_type: BlockType) -> None:
    wanted = [20, 0, 20, 16, 15]
    blocks = random_blocks(block_type, 21, 256)
    values = dequantize(block_type, blocks, (21, 256))
    buffer = packed(block_type, 21, 256, blocks)
    rows = _native.unpack_rows(block_type.ggml_id, 21, 256, buffer, wanted)
    assert rows.tobytes() == values[wanted].tobytes()
    assert _native.unpack_rows(block_type.ggml_id, 21, 256, buffer, []).shape == (0, 256)
    for outside in (21, 31, 2**40):
        with pytest.raises(ValueError, match="row out of range"):
            _native.unpack_rows(block_type.ggml_id, 21, 256, buffer, [outside])


@ALL
def test_packed_size_is_that_of_whole_tiles_of_sixteen_rows(block_type: BlockType) -> None:
    def size(rows: int, cols: int) -> int:
        return _native.packed_size(block_type.ggml_id, rows, cols)

    assert size(1, 2048) == size(16, 2048)
    assert size(17, 2048) == size(32, 2048) == 2 * size(16, 2048)
    # What the file has, and nothing added but the unfolding of the K formats' 6-bit scales to bytes.
    stored = 16 * block_type.row_bytes(2048)
    assert stored <= size(16, 2048) <= stored * 1.03


@ALL
def test_buffers_of_a_wrong_size_are_refused(block_type: BlockType) -> None:
    rows, cols, kind, team = 17, 256, block_type.ggml_id, _native.ThreadTeam(1)
    blocks = random_blocks(block_type, rows, cols)
    size = _native.packed_size(kind, rows, cols)
    buffer = packed(block_type, rows, cols, blocks)
    for source, room in ((blocks[:-1], size), (blocks, size - 1), (blocks, size + 1), (blocks[:0], size)):
        with pytest.raises(ValueError, match="wrong size"):
            _native.pack(kind, rows, cols, source, np.empty(room, np.uint8), team)
    for wrong in (buffer[:-1], buffer[:0], np.append(buffer, buffer[:1])):
        with pytest.raises(ValueError, match="wrong size"):
            _native.unpack_rows(kind, rows, cols, wrong, [0])
        with pytest.raises(ValueError, match="wrong size"):
            _native.matmul(kind, rows, cols, wrong, np.zeros((1, cols), np.float32), "portable", team)
    with pytest.raises(ValueError, match="wrong size"):
        _native.matmul(kind, rows, cols, buffer, np.zeros((1, cols + 1), np.float32), "portable", team)


def test_impossible_matrices_are_refused() -> None:
    for kind, rows, cols in ((99, 16, 256), (-1, 16, 256), (0, 0, 16), (0, 16, 0), (8, 16, 33), (12, 16, 128)):
        with pytest.raises(ValueError, match=r"block type|cannot be made of blocks"):
            _native.packed_size(kind, rows, cols)
    buffer = packed(BlockType.F32, 16, 16, random_blocks(BlockType.F32, 16, 16))
    with pytest.raises(ValueError, match="not available"):
        _native.matmul(0, 16, 16, buffer, np.zeros((1, 16), np.float32), "avx1024", _native.ThreadTeam(1))


@given(st.sampled_from(QUANTISED), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_blocks_of_random_bytes_come_back(block_type: BlockType, rows: int, width: int, seed: int) -> None:
    """Whatever the bytes, infinite scales and NaN included (there only which values are NaN counts)."""
    cols = 256 * width
    blocks = np.random.default_rng(seed).integers(0, 256, rows * block_type.row_bytes(cols), dtype=np.uint8)
    values = dequantize(block_type, blocks, (rows, cols))
    back = unpacked(block_type, rows, cols, blocks)
    numbers = ~np.isnan(values)
    assert np.array_equal(np.isnan(back), ~numbers)
    assert back[numbers].tobytes() == values[numbers].tobytes()
